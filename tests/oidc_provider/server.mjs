// A certified OpenID provider on loopback, driven by lines of JSON on stdin; each is answered by one line on stdout.
//
//   node server.mjs '{"certificate": FILE, "key": FILE}'   ->  {"ready": true, "port": 12345}
//   {"op": "claims", "claims": {...}}        what the next access tokens say in addition
//   {"op": "resource", "resource": {...}}    audience, algorithm and lifetime (seconds) of the next access tokens
//   {"op": "person", "subject": "alice"}     an access token of a person, as if they had signed in
//   {"op": "rotate", "keep": false}          new signing keys, a new provider behind the same port
import { createPublicKey, generateKeyPairSync, randomBytes, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createInterface } from 'node:readline';
import Provider, { errors } from 'oidc-provider';

console.info = console.log = console.error; // stdout is for answers
const files = JSON.parse(process.argv[2]);
const AUDIENCE = 'https://sealane.example';
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const grants = { c: ['client_credentials'], d: ['urn:ietf:params:oauth:grant-type:device_code'], a: ['authorization_code'] };
let extraClaims = {};
let resource = { audience: AUDIENCE, alg: 'ES256', seconds: 300 };
let generation = 0;
let handle;
let provider;
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
  provider = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: [randomBytes(16).toString('hex')] },
    clients: [
      { client_id: 'orchestrator', client_secret: 'orchestrator-secret', grant_types: [...grants.c, EXCHANGE], redirect_uris: [], response_types: [] },
      // Its tokens are bound to the client certificate that it shows when it asks for them (RFC 8705).
      { client_id: 'bound', client_secret: 'bound-secret', grant_types: grants.c, redirect_uris: [], response_types: [],
        tls_client_certificate_bound_access_tokens: true },
      { client_id: 'sealane-cli', token_endpoint_auth_method: 'none', application_type: 'native',
        grant_types: [...grants.d, ...grants.a], redirect_uris: ['http://127.0.0.1/callback'], response_types: ['code'] },
    ],
    pkce: { required: () => true },
    features: {
      encryption: { enabled: true },
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      mTLS: {
        enabled: true, certificateBoundAccessTokens: true,
        getCertificate: (ctx) => ctx.socket.getPeerX509Certificate()?.toString(),
      },
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
    // The claims of the test; of an exchanged token also who acts, which the provider knows and the client cannot choose.
    extraTokenClaims: (_ctx, token) => ({ ...extraClaims, ...(token.extra?.act ? { act: token.extra.act } : {}) }),
    ttl: { DeviceCode: 60, Interaction: 60, Session: 60, Grant: 60, IdToken: 60, AuthorizationCode: 60 },
  });
  provider.registerGrantType(EXCHANGE, exchange, ['subject_token', 'subject_token_type', 'audience', 'resource', 'scope']);
  provider.on('server_error', (_ctx, error) => process.stderr.write(`${error.stack}\n`));
  handle = provider.callback();
}

function verifiedClaims(token) {
  const [header, payload, signature] = token.split('.');
  const { kid } = JSON.parse(Buffer.from(header, 'base64url'));
  const jwk = keys.find((key) => key.kid === kid);
  const key = { key: createPublicKey({ key: { kty: jwk.kty, crv: jwk.crv, x: jwk.x, y: jwk.y }, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
  if (!verify('sha256', Buffer.from(`${header}.${payload}`), key, Buffer.from(signature, 'base64url'))) throw new Error('signature');
  return JSON.parse(Buffer.from(payload, 'base64url'));
}

function issue(client, accountId, extra) {
  const token = new provider.AccessToken({ accountId, client, scope: 'migrate', grantId: randomBytes(8).toString('hex'), gty: 'test', extra });
  token.resourceServer = new provider.ResourceServer(AUDIENCE, {
    scope: 'migrate', audience: resource.audience, accessTokenTTL: resource.seconds, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } },
  });
  return token.save();
}

// RFC 8693: the client that asks becomes the actor, and an actor in the subject's token the one before it.
async function exchange(ctx) {
  const { client, params } = ctx.oidc;
  if (params.subject_token_type !== ACCESS_TOKEN) throw new errors.InvalidRequest('subject_token_type');
  const subject = verifiedClaims(params.subject_token);
  const act = { sub: client.clientId, ...(subject.act ? { act: subject.act } : {}) };
  ctx.body = { access_token: await issue(client, subject.sub, { act }), issued_token_type: ACCESS_TOKEN, token_type: 'Bearer', expires_in: resource.seconds };
}

const tls = { cert: readFileSync(files.certificate), key: readFileSync(files.key), requestCert: true, rejectUnauthorized: false };
const server = createServer(tls, (request, response) => handle(request, response));
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const issuer = `https://127.0.0.1:${port}`;
  build(issuer, false);
  const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
  createInterface({ input: process.stdin }).on('line', async (line) => {
    const asked = JSON.parse(line);
    if (asked.op === 'claims') extraClaims = asked.claims;
    if (asked.op === 'resource') resource = { ...resource, ...asked.resource };
    if (asked.op === 'rotate') build(issuer, asked.keep);
    if (asked.op === 'person') say({ token: await issue(await provider.Client.find('sealane-cli'), asked.subject) });
    else say({ done: asked.op });
  }).on('close', () => process.exit(0));
  say({ ready: true, port });
});
