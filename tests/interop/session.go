package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// session is one migration's stream as D carries it, over one connection: a lost one is not resumed here.
type session struct {
	host    *host
	control *tls.Conn
	offer   message
	permit  permit
	token   string
	source  peer
	secret  []byte
	out     io.Writer
	started time.Time

	order    *order
	mutex    sync.Mutex // of all below
	port     string     // of channel 0, once it is opened
	received tally      // written to out
	sent     tally
	ended    chan struct{}
	lanes    chan net.Conn // one for channel 0, authenticated
	taken    bool
}

type tally struct{ frames, bytes uint64 }

// refusal is the code with which D refuses the offer, or none.
func (s *session) refusal() string {
	_, moves := s.offer.members["movement"]
	permits := s.offer.permits()
	switch {
	case s.offer.text("purpose") != "begin":
		return "session_unknown"
	case len(permits) != 1: // no other site is pinned here, so there is nothing that two could be for
		return "permit_format"
	}
	var err error
	var code refused
	s.token = permits[0]
	if s.permit, err = s.host.admit(s.token, time.Now().Unix(), s.source.id, s.host.id); errors.As(err, &code) {
		return string(code)
	}
	if moves {
		return "hypervisor"
	}
	return ""
}

func (s *session) send(members map[string]any) error {
	wire := encodeMessage(members)
	m, err := readMessage(bytes.NewReader(wire))
	if err == nil {
		err = s.order.pass("destination", m, m.counts("written")) // which have come
	}
	if err != nil {
		return fmt.Errorf("not ours to say: %w", err)
	}
	s.control.SetWriteDeadline(time.Now().Add(patience))
	_, err = s.control.Write(wire)
	return err
}

// begin reads the offer and answers it; the keys are there before the answer is, since lanes may come at once after it.
func (s *session) begin() (err error) {
	s.started = time.Now()
	if s.offer, err = readMessage(s.control); err != nil {
		return err
	}
	if err = s.order.pass("source", s.offer, nil); err != nil {
		return err
	}
	if code := s.refusal(); code != "" {
		return s.refuse(code)
	}
	session, err := hex.DecodeString(s.offer.text("session_id"))
	if err != nil {
		return err
	}
	context := exporterContext(s.offer.permits(), s.source.leaf, s.host.leaf, session, uint32(s.offer.number("attempt")))
	state := s.control.ConnectionState()
	if s.secret, err = state.ExportKeyingMaterial("EXPERIMENTAL-sealane-1", context, 48); err != nil {
		return err
	}
	s.host.expect(s)
	return s.send(map[string]any{"type": "answer", "next": map[string]any{}, "max_channels": 1})
}

func (s *session) refuse(code string) error {
	if err := s.send(map[string]any{"type": "refusal", "code": code, "message": code}); err != nil {
		return err
	}
	return fmt.Errorf("refused: %s", code)
}

// take gives the session an authenticated lane; false where it has it already.
func (s *session) take(channel uint16, connection net.Conn) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.taken || channel != 0 {
		return false
	}
	s.taken = true
	s.lanes <- connection
	return true
}

// carry reads the control connection to its bye.
func (s *session) carry() error {
	broken := make(chan error, 1)
	hasReceipt := false
	for {
		s.control.SetReadDeadline(time.Now().Add(patience))
		m, err := readMessage(s.control)
		if err != nil {
			select {
			case err = <-broken:
			default:
			}
			return fmt.Errorf("the connection is lost, and this receiver resumes none: %w", err)
		}
		if err = s.order.pass("source", m, s.sentFrames()); err != nil {
			return err
		}
		switch m.kind {
		case "ack":
		case "open":
			err = s.open(m, broken)
		case "receipt":
			hasReceipt = true
			err = s.answerReceipt(m)
		case "bye":
			if !hasReceipt {
				return violation("bye without a receipt")
			}
			return nil
		case "cancel":
			s.send(map[string]any{"type": "outcome", "outcome": "discarded"})
			return fmt.Errorf("cancelled: %s", m.text("code"))
		default:
			err = violation(m.kind + " out of order")
		}
		if err != nil {
			return err
		}
	}
}

func (s *session) open(m message, broken chan<- error) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !slices.Contains(s.permit.Ports, m.text("port")) {
		return violation("an open that was not permitted")
	}
	s.port = m.text("port")
	go func() {
		if err := s.runLane(); err != nil {
			broken <- err
			s.control.NetConn().Close() // a connection lives and dies whole
		}
	}()
	return nil
}

// sentFrames are ours by channel, which S may acknowledge.
func (s *session) sentFrames() map[string]uint64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return map[string]uint64{"0": s.sent.frames}
}

// runLane writes what comes and acknowledges it; at the fin it answers with the SHA-256 of everything, and its own fin.
func (s *session) runLane() error {
	var connection net.Conn
	select {
	case connection = <-s.lanes:
	case <-time.After(patience):
		return errors.New("a lane that does not come")
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(patience))
	in, digest := newLane(s.secret, 0, forth, 0), sha256.New()
	for {
		kind, payload, err := in.read(connection)
		if err != nil {
			return fmt.Errorf("lane: %w", err)
		}
		if kind == typeReset {
			return errors.New("lane: reset")
		}
		digest.Write(payload)
		if _, err = s.out.Write(payload); err != nil {
			return err
		}
		s.mutex.Lock()
		s.received = tally{in.seq, s.received.bytes + uint64(len(payload))}
		s.mutex.Unlock()
		if err = s.send(map[string]any{"type": "ack", "written": map[string]any{"0": in.seq}}); err != nil {
			return err
		}
		if kind == typeFin {
			break
		}
	}
	reply, out := digest.Sum(nil), newLane(s.secret, 0, back, 0)
	frames := [][]byte{out.seal(typeData, reply[:10]), out.seal(typeData, reply[10:]), out.seal(typeFin, nil)}
	s.mutex.Lock()
	s.sent = tally{out.seq, uint64(len(reply))}
	s.mutex.Unlock()
	close(s.ended)
	if _, err := connection.Write(bytes.Join(frames, nil)); err != nil {
		return err
	}
	// S closes the lane when the session is over; until then nothing may follow its fin.
	if n, _ := connection.Read(make([]byte, 1)); n > 0 {
		return violation("bytes after fin")
	}
	return nil
}

// answerReceipt checks S's receipt against what this end has seen, and sends ours.
func (s *session) answerReceipt(m message) error {
	select {
	case <-s.ended:
	case <-time.After(patience):
		return violation("a receipt before the channel's end")
	}
	body := m.text("body")
	signature, err := base64.StdEncoding.DecodeString(m.text("signature"))
	digest := sha256.Sum256([]byte(body))
	if err != nil || !ecdsa.VerifyASN1(s.source.key, digest[:], signature) {
		return violation("a receipt that its sender's key has not signed")
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	ours := s.receipt()
	var theirs map[string]any
	if json.Unmarshal([]byte(body), &theirs) != nil || theirs["role"] != "source" {
		return violation("a receipt of another form")
	}
	for _, name := range []string{"version", "jti", "migration_id", "permit_sha256", "source", "destination", "vm", "tls",
		"lane_cipher", "source_fingerprint", "destination_fingerprint", "outcome", "checkpoint"} {
		if got, want := compact(theirs[name]), compact(ours[name]); !bytes.Equal(got, want) {
			return violation(fmt.Sprintf("the receipt's %s is %s and not %s", name, got, want))
		}
	}
	channels := compact([]map[string]any{s.channel(s.received, s.sent)})
	if got := compact(theirs["channels"]); !bytes.Equal(got, channels) {
		return violation(fmt.Sprintf("the receipt's channels are %s and not %s", got, channels))
	}
	ours["peer_receipt_sha256"] = hex.EncodeToString(digest[:])
	text := compact(ours)
	digest = sha256.Sum256(text)
	signed, err := ecdsa.SignASN1(rand.Reader, s.host.key, digest[:])
	if err != nil {
		return err
	}
	return s.send(map[string]any{
		"type": "receipt", "body": string(text), "signature": base64.StdEncoding.EncodeToString(signed),
	})
}

// channel is an entry of a receipt's `channels`.
func (s *session) channel(sent, received tally) map[string]any {
	return map[string]any{
		"channel": 0, "port": s.port,
		"sent_bytes": sent.bytes, "sent_frames": sent.frames,
		"received_bytes": received.bytes, "received_frames": received.frames,
	}
}

// receipt is ours, without what only the peer's can give.
func (s *session) receipt() map[string]any {
	permitDigest := sha256.Sum256([]byte(s.token))
	const form = "2006-01-02T15:04:05.000000Z"
	return map[string]any{
		"version": 1, "role": "destination", "jti": s.permit.JTI, "migration_id": s.permit.MigrationID,
		"permit_sha256": hex.EncodeToString(permitDigest[:]),
		"source":        s.permit.Source, "destination": s.permit.Destination, "vm": s.permit.VM, "vm_binding": "none",
		"tls":                     map[string]any{"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"},
		"lane_cipher":             "AES-256-GCM",
		"source_fingerprint":      hex.EncodeToString(s.source.leaf),
		"destination_fingerprint": hex.EncodeToString(s.host.leaf),
		"channels":                []map[string]any{s.channel(s.sent, s.received)},
		"resumptions":             0, "outcome": "completed", "downtime_ms": nil, "content_digests": nil,
		"started": s.started.UTC().Format(form), "ended": time.Now().UTC().Format(form),
		"checkpoint": s.permit.Proof.Checkpoint, "peer_receipt_sha256": nil,
	}
}
