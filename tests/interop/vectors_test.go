package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
)

// octets are hexadecimal in JSON.
type octets []byte

func (o *octets) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	decoded, err := hex.DecodeString(text)
	*o = decoded
	return err
}

type contextVector struct {
	Permits         []string
	SourceLeaf      octets `json:"source_leaf_sha256"`
	DestinationLeaf octets `json:"destination_leaf_sha256"`
	SessionID       octets `json:"session_id"`
	Attempt         uint32
	Context         octets
}

type frameVector struct {
	Type    byte
	Seq     uint64
	Payload octets
	Wire    octets
}

type laneVector struct {
	Why       string
	Secret    octets
	Channel   uint16
	Direction byte
	FirstSeq  uint64 `json:"first_seq"`
	Frames    []frameVector
	Wire      octets
}

type prefaceVector struct {
	Why     string
	Secret  octets
	Channel uint16
	Wire    octets
}

type wayVector struct {
	FirstSeq uint64 `json:"first_seq"`
	Wire     octets
}

type vectorFile struct {
	Protocol int
	Contexts []contextVector
	Keys     []struct {
		Secret       octets
		Channel      uint16
		Direction    byte
		ConnectionID octets `json:"connection_id"`
		PrefaceKey   octets `json:"preface_key"`
		Epochs       []struct {
			LaneSecret octets `json:"lane_secret"`
			Key, Iv    octets
		}
	}
	Prefaces        []prefaceVector
	RefusedPrefaces []prefaceVector `json:"refused_prefaces"`
	Lanes           []laneVector
	Epochs          laneVector
	RefusedFrames   []laneVector `json:"refused_frames"`
	Messages        []struct {
		Message map[string]any
		Wire    octets
	}
	RefusedMessages []struct {
		Why  string
		Wire octets
	} `json:"refused_messages"`
	RefusedOrders []struct {
		Why      string
		Messages []struct {
			From string
			Wire octets
		}
	} `json:"refused_orders"`
	ClearLanes         []laneVector `json:"clear_lanes"`
	RefusedClearFrames []laneVector `json:"refused_clear_frames"`
	Permits            struct {
		Now                 int64
		Source, Destination string
		CRLNumber           uint64 `json:"crl_number"`
		Ports, Seals, Meets []string
		PermitKey           []byte `json:"permit_key"` // base64
		KeyID               string `json:"key_id"`
		LogKey              string `json:"log_key"`
		Good                []struct {
			Entry, Permit string
			LeafHash      octets `json:"leaf_hash"`
		}
		Refused []struct{ Why, Code, Permit string }
	}
	Session struct {
		Plaintext struct {
			Forth octets `json:"source_to_destination"`
			Back  octets `json:"destination_to_source"`
		}
		Connections []struct {
			contextVector
			Secret  octets
			Control struct {
				Forth octets `json:"source_to_destination"`
				Back  octets `json:"destination_to_source"`
			}
			Lane struct {
				Channel uint16
				Preface octets
				Forth   wayVector `json:"source_to_destination"`
				Back    wayVector `json:"destination_to_source"`
			}
		}
	}
}

func load(t *testing.T) (v vectorFile) {
	t.Helper()
	data, err := os.ReadFile("../../docs/wire-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if v.Protocol != 1 || len(v.Keys) == 0 || len(v.Lanes) == 0 || len(v.Session.Connections) != 2 {
		t.Fatal("vectors of another form")
	}
	return v
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s is %x and should be %x", what, got, want)
	}
}

func refusal(t *testing.T, why string, err error) {
	t.Helper()
	var v violation
	if !errors.As(err, &v) {
		t.Errorf("%s: not refused, but %v", why, err)
	}
}

func (c contextVector) check(t *testing.T) {
	t.Helper()
	same(t, "context", exporterContext(c.Permits, c.SourceLeaf, c.DestinationLeaf, c.SessionID, c.Attempt), c.Context)
}

func TestContextsAndKeys(t *testing.T) {
	v := load(t)
	for _, c := range v.Contexts {
		c.check(t)
	}
	for _, k := range v.Keys {
		same(t, "connection id", connectionID(k.Secret), k.ConnectionID)
		same(t, "preface key", prefaceKey(k.Secret, k.Channel), k.PrefaceKey)
		secret := laneSecret(k.Secret, k.Channel, k.Direction)
		for _, epoch := range k.Epochs {
			key, iv := epochKey(secret)
			same(t, "lane secret", secret, epoch.LaneSecret)
			same(t, "key", key, epoch.Key)
			same(t, "iv", iv, epoch.Iv)
			secret = nextLaneSecret(secret)
		}
	}
}

func TestPrefaces(t *testing.T) {
	v := load(t)
	for _, p := range v.Prefaces {
		same(t, "preface", makePreface(p.Secret, p.Channel), p.Wire)
		if channel, err := checkPreface(p.Secret, p.Wire); err != nil || channel != p.Channel {
			t.Errorf("preface of channel %d: %d, %v", p.Channel, channel, err)
		}
	}
	for _, p := range v.RefusedPrefaces {
		_, err := checkPreface(p.Secret, p.Wire)
		refusal(t, p.Why, err)
	}
}

func TestFrames(t *testing.T) {
	v := load(t)
	for _, l := range v.Lanes {
		opener, sealer := newLane(l.Secret, l.Channel, l.Direction, l.FirstSeq), newLane(l.Secret, l.Channel, l.Direction, l.FirstSeq)
		for _, f := range l.Frames {
			seq := opener.seq
			kind, payload, err := opener.read(bytes.NewReader(f.Wire))
			if err != nil || kind != f.Type || seq != f.Seq {
				t.Fatalf("frame %d: type %d, seq %d, %v", f.Seq, kind, seq, err)
			}
			same(t, "payload", payload, f.Payload)
			same(t, "frame", sealer.seal(f.Type, f.Payload), f.Wire)
		}
	}
	for _, l := range v.RefusedFrames {
		opener, wire := newLane(l.Secret, l.Channel, l.Direction, l.FirstSeq), bytes.NewReader(l.Wire)
		var err error
		for err == nil {
			_, _, err = opener.read(wire)
		}
		refusal(t, l.Why, err)
	}
}

func TestClearFrames(t *testing.T) {
	v := load(t)
	for _, l := range v.ClearLanes {
		opener, sealer := newClearLane(l.FirstSeq), newClearLane(l.FirstSeq)
		for _, f := range l.Frames {
			kind, payload, err := opener.read(bytes.NewReader(f.Wire))
			if err != nil || kind != f.Type {
				t.Fatalf("frame %d: type %d, %v", f.Seq, kind, err)
			}
			same(t, "payload", payload, f.Payload)
			same(t, "frame", sealer.seal(f.Type, f.Payload), f.Wire)
		}
	}
	for _, l := range v.RefusedClearFrames {
		opener, wire := newClearLane(l.FirstSeq), bytes.NewReader(l.Wire)
		var err error
		for err == nil {
			_, _, err = opener.read(wire)
		}
		refusal(t, l.Why, err)
	}
}

func TestEpochs(t *testing.T) {
	l := load(t).Epochs
	sealer := newLane(l.Secret, l.Channel, l.Direction, l.FirstSeq)
	opener := newLane(l.Secret, l.Channel, l.Direction, l.FirstSeq)
	for sealer.seq < l.Frames[0].Seq {
		if _, _, err := opener.read(bytes.NewReader(sealer.seal(typeData, []byte{0}))); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range l.Frames {
		_, payload, err := opener.read(bytes.NewReader(f.Wire))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "payload", payload, f.Payload)
		same(t, "frame", sealer.seal(typeData, f.Payload), f.Wire)
	}
}

func TestMessages(t *testing.T) {
	v := load(t)
	for _, m := range v.Messages {
		read, err := readMessage(bytes.NewReader(m.Wire))
		if err != nil || read.kind != m.Message["type"] {
			t.Errorf("%v: %v", m.Message, err)
		}
		var again map[string]any
		if err := json.Unmarshal(encodeMessage(m.Message)[4:], &again); err != nil || !reflect.DeepEqual(again, m.Message) {
			t.Errorf("%v: encoded as %v, %v", m.Message, again, err)
		}
	}
	for _, m := range v.RefusedMessages {
		_, err := readMessage(bytes.NewReader(m.Wire))
		refusal(t, m.Why, err)
	}
}

// TestOrders: of each the last message is refused by whoever gets it, and no other.
func TestOrders(t *testing.T) {
	v := load(t)
	if len(v.RefusedOrders) == 0 {
		t.Fatal("no orders")
	}
	for _, o := range v.RefusedOrders {
		order, last := newOrder(), len(o.Messages)-1
		for n, said := range o.Messages {
			m, err := readMessage(bytes.NewReader(said.Wire))
			if err != nil {
				t.Fatalf("%s: %v", o.Why, err)
			}
			if err = order.pass(said.From, m, map[string]uint64{"0": 3}); n == last {
				refusal(t, o.Why, err)
			} else if err != nil {
				t.Errorf("%s: refused too early, at message %d: %v", o.Why, n, err)
			}
		}
	}
}

// TestSizes: of messages and receipts the longest there may be, and one byte or character more.
func TestSizes(t *testing.T) {
	framed := func(body []byte) io.Reader {
		return bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	}
	padded := func(size int) []byte { return append([]byte(`{"type":"bye"}`), bytes.Repeat([]byte(" "), size-14)...) }
	receipt := func(size int) []byte {
		return compact(map[string]any{"type": "receipt", "body": strings.Repeat("x", size), "signature": ""})
	}
	for _, good := range [][]byte{padded(65536), receipt(49152)} {
		if _, err := readMessage(framed(good)); err != nil {
			t.Error(err)
		}
	}
	for _, long := range [][]byte{padded(65537), receipt(49153)} {
		_, err := readMessage(framed(long))
		refusal(t, "too long", err)
	}
}

// messages are all of a control connection's one way.
func messages(t *testing.T, wire []byte) (all []message) {
	t.Helper()
	for from := bytes.NewReader(wire); ; {
		m, err := readMessage(from)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
}

// TestSession puts a recorded session together again: what counts of a connection that was lost are its whole frames, and
// the next connection goes on exactly there.
func TestSession(t *testing.T) {
	v := load(t)
	var next [2]uint64
	var got [2][]byte
	var ended [2]bool
	for n, c := range v.Session.Connections {
		c.check(t)
		s, d := messages(t, c.Control.Forth), messages(t, c.Control.Back)
		offer, answer := s[0], d[0]
		if offer.kind != "offer" || answer.kind != "answer" || uint32(offer.number("attempt")) != c.Attempt ||
			!reflect.DeepEqual(offer.permits(), c.Permits) {
			t.Fatalf("connection %d begins with %v, %v", n, offer, answer)
		}
		if offer.counts("next")["0"] != next[back] || answer.counts("next")["0"] != next[forth] {
			t.Fatalf("connection %d: wrong counts in %v, %v", n, offer, answer)
		}
		channel, err := checkPreface(c.Secret, c.Lane.Preface)
		if err != nil || channel != c.Lane.Channel {
			t.Fatal(channel, err)
		}
		for way, lane := range [2]wayVector{c.Lane.Forth, c.Lane.Back} {
			if lane.FirstSeq != next[way] {
				t.Fatalf("connection %d, direction %d begins at %d and not %d", n, way, lane.FirstSeq, next[way])
			}
			opener, wire := newLane(c.Secret, channel, byte(way), lane.FirstSeq), bytes.NewReader(lane.Wire)
			for {
				kind, payload, err := opener.read(wire)
				if err == io.EOF || err == io.ErrUnexpectedEOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got[way] = append(got[way], payload...)
				ended[way] = kind == typeFin
			}
			next[way] = opener.seq
		}
	}
	same(t, "from source to destination", got[forth], v.Session.Plaintext.Forth)
	same(t, "from destination to source", got[back], v.Session.Plaintext.Back)
	if ended != [2]bool{true, true} {
		t.Error("a direction without its fin")
	}
}
