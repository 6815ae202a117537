package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"unicode/utf8"
)

const maxMessage = 65536

var (
	channelText = regexp.MustCompile(`^(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])$`)
	sessionText = regexp.MustCompile(`^[0-9a-f]{32}$`)
	codeText    = regexp.MustCompile(`^[a-z_]{1,40}$`)
	portText    = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`)
)

// message is a control message whose members are what the document allows for its type.
type message struct {
	kind    string
	members map[string]any // strings, json.Numbers, bools, slices and maps, as decoded
}

func (m message) text(name string) string { s, _ := m.members[name].(string); return s }

func (m message) number(name string) uint64 {
	n, _ := m.members[name].(json.Number)
	value, _ := strconv.ParseUint(n.String(), 10, 64)
	return value
}

func (m message) permits() (all []string) {
	list, _ := m.members["permits"].([]any)
	for _, permit := range list {
		all = append(all, permit.(string))
	}
	return all
}

func (m message) counts(name string) map[string]uint64 {
	found := map[string]uint64{}
	object, _ := m.members[name].(map[string]any)
	for channel, n := range object {
		found[channel], _ = strconv.ParseUint(n.(json.Number).String(), 10, 64)
	}
	return found
}

type check func(any) bool

type shape struct {
	must map[string]check
	may  map[string]check
}

// codes are those of section 9.
var codes = []string{
	"permit_size", "permit_signature", "permit_format", "permit_audience", "permit_times", "permit_parties", "permit_vm",
	"permit_ports", "permit_proof", "permit_requirements", "permit_replayed", "session_known", "session_unknown",
	"protocol", "busy", "hypervisor", "internal",
}

// shapes is the table of section 2.
var shapes = map[string]shape{
	"offer": {
		must: map[string]check{
			"protocol": whole(1, 1), "purpose": oneOf("begin", "resume", "settle", "recover"), "permits": isPermits,
			"session_id": matches(sessionText), "attempt": whole(0, 1<<32-1),
		},
		may: map[string]check{"next": isCounts, "movement": isMovement},
	},
	"answer":   {must: map[string]check{"next": isCounts, "max_channels": whole(1, 256)}},
	"refusal":  {must: map[string]check{"code": oneOf(codes...), "message": isText(512)}},
	"open":     {must: map[string]check{"channel": whole(0, 255), "port": matches(portText)}},
	"ack":      {must: map[string]check{"written": isCounts}},
	"handover": {may: map[string]check{"post_copy": isBool}},
	"outcome":  {must: map[string]check{"outcome": oneOf("running", "discarded")}},
	"cancel":   {must: map[string]check{"code": matches(codeText), "reason": isText(512)}},
	"receipt":  {must: map[string]check{"body": isText(48 * 1024), "signature": isText(256)}},
	"bye":      {},
}

func whole(low, high uint64) check {
	return func(v any) bool {
		n, ok := v.(json.Number)
		value, err := strconv.ParseUint(n.String(), 10, 64)
		return ok && err == nil && low <= value && value <= high
	}
}

func oneOf(allowed ...string) check {
	return func(v any) bool { s, ok := v.(string); return ok && slices.Contains(allowed, s) }
}

func matches(pattern *regexp.Regexp) check {
	return func(v any) bool { s, ok := v.(string); return ok && pattern.MatchString(s) }
}

func isText(most int) check {
	return func(v any) bool { s, ok := v.(string); return ok && utf8.RuneCountInString(s) <= most }
}

func isBool(v any) bool { _, ok := v.(bool); return ok }

func isPermits(v any) bool {
	list, ok := v.([]any)
	for _, permit := range list {
		text, isString := permit.(string)
		ok = ok && isString && text != ""
	}
	return ok && (len(list) == 1 || len(list) == 2)
}

func isCounts(v any) bool {
	object, ok := v.(map[string]any)
	for channel, n := range object {
		ok = ok && channelText.MatchString(channel) && whole(0, 1<<62-1)(n)
	}
	return ok
}

func isMovement(v any) bool {
	object, ok := v.(map[string]any)
	known := map[string]check{
		"multifd_channels": whole(0, 64), "multifd_compression": oneOf("none", "zlib", "zstd"),
		"xbzrle": isBool, "post_copy": isBool, "preempt": isBool,
	}
	for name, value := range object {
		fits, isKnown := known[name]
		ok = ok && isKnown && fits(value)
	}
	return ok
}

func decodeMessage(body []byte) (message, error) {
	value, err := decodeStrict(body)
	members, ok := value.(map[string]any)
	if err != nil || !ok {
		return message{}, violation("not a JSON object")
	}
	kind, _ := members["type"].(string)
	known, isKnown := shapes[kind]
	if !isKnown {
		return message{}, violation("an unknown type of message")
	}
	delete(members, "type")
	for name := range known.must {
		if _, there := members[name]; !there {
			return message{}, violation(fmt.Sprintf("%s without %s", kind, name))
		}
	}
	for name, value := range members {
		fits, there := known.must[name]
		if !there {
			fits, there = known.may[name]
		}
		if !there || !fits(value) {
			return message{}, violation(fmt.Sprintf("%s with a wrong member", kind))
		}
	}
	return message{kind, members}, nil
}

func readMessage(from io.Reader) (message, error) {
	var length [4]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return message{}, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > maxMessage {
		return message{}, violation("a message of more than 64 KiB")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(from, body); err != nil {
		return message{}, io.ErrUnexpectedEOF
	}
	return decodeMessage(body)
}

// compact is JSON without the escapes that Go adds for HTML; members of maps are sorted by name.
func compact(value any) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err) // only our own maps of text and numbers come here
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

func encodeMessage(members map[string]any) []byte {
	body := compact(members)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}
