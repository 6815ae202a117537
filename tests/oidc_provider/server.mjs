// A certified OpenID provider on loopback, driven by lines of JSON on stdin; each is answered by one line on stdout.
//
//   node server.mjs '{"certificate": FILE, "key": FILE}'   ->  {"ready": true, "port": 12345}
//   {"op": "claims", "claims": {...}}        what the next access tokens say in addition
//   {"op": "resource", "resource": {...}}    audience, algorithm and lifetime (seconds) of the next access tokens
//   {"op": "rotate", "keep": false}          new signing keys, a new provider behind the same port
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';
import Provider from 'oidc-provider';

console.info = console.log = console.error; // stdout is for answers
const files = JSON.parse(process.argv[2]);
const AUDIENCE = 'https://sealane.example';
const grants = { c: ['client_credentials'], d: ['urn:ietf:params:oauth:grant-type:device_code'], a: ['authorization_code'] };
let extraClaims = {};
let resource = { audience: AUDIENCE, alg: 'ES256', seconds: 300 };
let generation = 0;
let handle;
let keys = [];

function makeKey(kind, options, alg, use = 'sig') {
  const jwk = generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' });
  return { ...jwk, kid: `${alg}-${generation}`, alg, use };
}

function makeKeys() {
  generation += 1;
  return [
    makeKey('ec', { namedCurve: 'P-256' }, 'ES256'),
    makeKey('rsa', { modulusLength: 2048 }, 'RS256'),
    // Keys that a gateway must step over, and tokens under them that it must refuse.
    makeKey('ec', { namedCurve: 'P-384' }, 'ES384'),
    makeKey('ed25519', {}, 'EdDSA'),
    makeKey('rsa', { modulusLength: 2048 }, 'RSA-OAEP', 'enc'),
  ];
}

function build(issuer, keep) {
  keys = [...makeKeys(), ...(keep ? keys : [])];
  const provider = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    clients: [
      { client_id: 'orchestrator', client_secret: 'orchestrator-secret', grant_types: grants.c, redirect_uris: [], response_types: [] },
      { client_id: 'sealane-cli', token_endpoint_auth_method: 'none', application_type: 'native',
        grant_types: [...grants.d, ...grants.a], redirect_uris: ['http://127.0.0.1/callback'], response_types: ['code'] },
    ],
    pkce: { required: () => true },
    features: {
      encryption: { enabled: true },
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        useGrantedResource: () => true,
        getResourceServerInfo: () => ({
          scope: 'migrate', audience: resource.audience, accessTokenTTL: resource.seconds, accessTokenFormat: 'jwt',
          jwt: { sign: { alg: resource.alg } },
        }),
      },
    },
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: () => extraClaims,
    ttl: { DeviceCode: 60, Interaction: 60, Session: 60, Grant: 60, IdToken: 60, AuthorizationCode: 60 },
  });
  handle = provider.callback();
}

const tls = { cert: readFileSync(files.certificate), key: readFileSync(files.key) };
const server = createServer(tls, (request, response) => handle(request, response));
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const issuer = `https://127.0.0.1:${port}`;
  build(issuer, false);
  const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
  createInterface({ input: process.stdin }).on('line', (line) => {
    const asked = JSON.parse(line);
    if (asked.op === 'claims') extraClaims = asked.claims;
    if (asked.op === 'resource') resource = { ...resource, ...asked.resource };
    if (asked.op === 'rotate') build(issuer, asked.keep);
    say({ done: asked.op });
  }).on('close', () => process.exit(0));
  say({ ready: true, port });
});
