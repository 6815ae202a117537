package main

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"
)

const name = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`

var spiffe = regexp.MustCompile(`^spiffe://(` + name + `(\.` + name + `)*)/host/` + name + `$`)

// trust is whom a host believes: its site's CAs, their CRLs, and the one trust domain.
type trust struct {
	roots  *x509.CertPool
	crls   []*x509.RevocationList
	domain string
}

// peer is the other end, checked.
type peer struct {
	id   string
	leaf []byte // SHA-256 of the certificate's DER
	key  *ecdsa.PublicKey
}

func readTrust(caFile, crlFile, domain string) (t trust, err error) {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return t, err
	}
	t = trust{roots: x509.NewCertPool(), domain: domain}
	if !t.roots.AppendCertsFromPEM(ca) {
		return t, errors.New("no certificate in the file of CAs")
	}
	rest, err := os.ReadFile(crlFile)
	if err != nil {
		return t, err
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return t, nil
		}
		crl, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return t, err
		}
		t.crls = append(t.crls, crl)
	}
}

// verify is the table of section 2, after the handshake: Go's own TLS leaves certificates to us (RequireAnyClientCert), so
// that a refused peer is closed without an alert. The group is the only one that our configuration has.
func (t trust) verify(state tls.ConnectionState) (p peer, err error) {
	if state.Version != tls.VersionTLS13 || state.CipherSuite != tls.TLS_AES_256_GCM_SHA384 ||
		state.NegotiatedProtocol != alpn || state.DidResume || len(state.PeerCertificates) == 0 {
		return p, violation("another version, cipher suite or protocol, or no certificate")
	}
	leaf := state.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, certificate := range state.PeerCertificates[1:] {
		between.AddCert(certificate)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		options := x509.VerifyOptions{Roots: t.roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}
		chains, err := leaf.Verify(options)
		if err != nil {
			return p, err
		}
		if !slices.Contains(leaf.ExtKeyUsage, usage) {
			return p, violation("a certificate without both usages")
		}
		if !slices.ContainsFunc(chains, t.unrevoked) {
			return p, violation("revoked, or no CRL that says it is not")
		}
	}
	if len(leaf.URIs) != 1 {
		return p, violation("not exactly one URI")
	}
	id := leaf.URIs[0].String()
	if found := spiffe.FindStringSubmatch(id); found == nil || found[1] != t.domain {
		return p, violation("not a host of our trust domain")
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return p, violation("a key that cannot sign receipts")
	}
	digest := sha256.Sum256(leaf.Raw)
	return peer{id, digest[:], key}, nil
}

// unrevoked: each certificate of the chain but the root is judged by a CRL of its issuer that is not past its time.
func (t trust) unrevoked(chain []*x509.Certificate) bool {
	for n, certificate := range chain[:len(chain)-1] {
		at := slices.IndexFunc(t.crls, func(crl *x509.RevocationList) bool {
			return crl.CheckSignatureFrom(chain[n+1]) == nil && time.Now().Before(crl.NextUpdate)
		})
		if at < 0 || slices.ContainsFunc(t.crls[at].RevokedCertificateEntries, func(entry x509.RevocationListEntry) bool {
			return entry.SerialNumber.Cmp(certificate.SerialNumber) == 0
		}) {
			return false
		}
	}
	return true
}

// ownIdentity is this host's certificate, key, SPIFFE id and leaf.
func ownIdentity(certFile, keyFile string) (pair tls.Certificate, p peer, key *ecdsa.PrivateKey, err error) {
	if pair, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		return
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || len(leaf.URIs) != 1 {
		err = fmt.Errorf("%s is no host's certificate", certFile)
		return
	}
	digest := sha256.Sum256(leaf.Raw)
	return pair, peer{leaf.URIs[0].String(), digest[:], &key.PublicKey}, key, nil
}
