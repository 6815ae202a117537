// Command interop is a second destination of Sealane's wire protocol, written from docs/wire-protocol.md alone.
//
//	interop -cert F -key F -ca F -crl F -permit-key F -log-key F -domain D -out F
//
// It listens on 127.0.0.1, prints {"address": …}, takes one session of one channel, writes the bytes to a file, answers with
// their SHA-256, exchanges receipts, and prints {"source": …, "bytes": …}. Whom it speaks to it checks as the document says,
// and the permit up to its single use; it resumes nothing. It is here to show that the document is enough, and no more.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	alpn      = "sealane/1"
	handshake = 10 * time.Second
	patience  = 20 * time.Second
)

// host listens; at most one session lives.
type host struct {
	trust
	judge
	id      string
	leaf    []byte
	key     *ecdsa.PrivateKey
	config  *tls.Config
	out     io.Writer
	results chan error

	mutex   sync.Mutex
	current *session
}

func main() {
	cert, key := flag.String("cert", "", "our chain"), flag.String("key", "", "our key")
	ca, crl := flag.String("ca", "", "the CAs"), flag.String("crl", "", "their CRLs")
	permitKey, log := flag.String("permit-key", "", "the gateway's key of permits"), flag.String("log-key", "", "its log's key")
	domain, out := flag.String("domain", "", "the trust domain"), flag.String("out", "", "where the bytes go")
	flag.Parse()
	if err := run(*cert, *key, *ca, *crl, *permitKey, *log, *domain, *out); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(cert, key, ca, crl, permitKey, log, domain, out string) error {
	trusted, err := readTrust(ca, crl, domain)
	if err != nil {
		return err
	}
	judging, err := readJudge(permitKey, log)
	if err != nil {
		return err
	}
	pair, own, private, err := ownIdentity(cert, key)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	h := &host{trust: trusted, judge: judging, id: own.id, leaf: own.leaf, key: private, out: file, results: make(chan error, 1)}
	h.config = &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{alpn},
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, SessionTicketsDisabled: true,
	}
	fmt.Printf("%s\n", compact(map[string]any{"address": listener.Addr().String()}))
	go h.accept(listener)
	if err := <-h.results; err != nil {
		return err
	}
	s := h.current
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"source": s.source.id, "bytes": s.received.bytes, "frames": s.received.frames})
}

func (h *host) accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go h.sort(connection)
	}
}

// prefixed is a connection whose first bytes were read already.
type prefixed struct {
	net.Conn
	from io.Reader
}

func (p prefixed) Read(b []byte) (int, error) { return p.from.Read(b) }

// sort tells a control connection from a lane by its first four bytes; whatever else it is, it is closed without a word.
func (h *host) sort(connection net.Conn) {
	connection.SetDeadline(time.Now().Add(handshake))
	first := make([]byte, 4)
	if _, err := io.ReadFull(connection, first); err != nil {
		connection.Close()
		return
	}
	switch {
	case first[0] == 0x16 && first[1] == 0x03:
		h.serve(prefixed{connection, io.MultiReader(bytes.NewReader(first), connection)})
	case string(first) == "SLN1":
		h.lane(first, connection)
	default:
		connection.Close()
	}
}

func (h *host) lane(preface []byte, connection net.Conn) {
	rest := make([]byte, prefaceBytes-len(preface))
	_, err := io.ReadFull(connection, rest)
	h.mutex.Lock()
	s := h.current
	h.mutex.Unlock()
	if err == nil && s != nil {
		if channel, err := checkPreface(s.secret, append(preface, rest...)); err == nil && s.take(channel, connection) {
			return
		}
	}
	connection.Close()
}

// serve carries a session where the peer is who it must be. The first session that was answered decides how we end.
func (h *host) serve(connection net.Conn) {
	defer connection.Close()
	control := tls.Server(connection, h.config)
	if control.Handshake() != nil {
		return
	}
	source, err := h.verify(control.ConnectionState())
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop: a peer that is not believed:", err)
		return
	}
	s := &session{
		host: h, control: control, source: source, out: h.out, order: newOrder(),
		ended: make(chan struct{}), lanes: make(chan net.Conn, 1),
	}
	if err := s.begin(); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		return
	}
	h.results <- s.carry()
}

// expect makes the session the one that lanes belong to.
func (h *host) expect(s *session) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.current = s
}
