package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strings"
)

// refused is a code of section 9.
type refused string

func (r refused) Error() string { return "refused: " + string(r) }

// judge is what a host without a second site holds permits against: section 3, up to single use.
type judge struct {
	key       *ecdsa.PublicKey
	keyID     string
	log       logKey
	ports     []string // that it carries
	seals     []string
	crlNumber uint64
	meets     []string // requirements
}

// permit has the claims that are needed later, and all of them as the log's entry has them.
type permit struct {
	JTI          string `json:"jti"`
	Aud          string `json:"aud"`
	Iat          int64  `json:"iat"`
	Nbf          int64  `json:"nbf"`
	Exp          int64  `json:"exp"`
	SessionUntil int64  `json:"session_until"`
	RecoverUntil int64  `json:"recover_until"`
	MigrationID  string `json:"migration_id"`
	VM           string `json:"vm"`
	Source       string `json:"source"`
	Destination  string `json:"destination"`
	Ports        []string
	Seal         string
	Limits       struct {
		MaxChannels uint64 `json:"max_channels"`
	}
	Requirements     map[string]bool
	MinimumCRLNumber uint64 `json:"minimum_crl_number"`
	Proof            struct {
		DecisionIndex uint64 `json:"decision_index"`
		DecisionLeaf  string `json:"decision_leaf_hash"`
		Index         uint64
		Checkpoint    string
		Path          []string
	}
	entry []byte
}

const (
	skew          = 30
	maxPermit     = 16 * 1024
	maxCheckpoint = 4096
	maxCount      = 1<<53 - 1
)

var (
	fileText   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	issuerText = regexp.MustCompile(`^[\x21-\x7e]{1,255}$`)
	uuidText   = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	digestText = regexp.MustCompile(`^[0-9a-f]{64}$`)
	moving     = []string{"disks", "libvirt", "memory"}
)

// claimShapes are the payload's members, and those of the objects in it.
var claimShapes = map[string]check{
	"iss": matches(issuerText), "aud": matches(spiffe), "jti": matches(fileText), "migration_id": matches(fileText),
	"iat": isTime, "nbf": isTime, "exp": isTime, "session_until": isTime, "recover_until": isTime,
	"vm": matches(uuidText), "source": matches(spiffe), "destination": matches(spiffe), "bundle": matches(digestText),
	"ports": isPorts, "seal": oneOf("sealane", "tls"), "minimum_crl_number": whole(0, maxCount),
	"limits":       exactly(map[string]check{"max_channels": whole(1, 65535), "bandwidth_bytes_per_second": whole(0, maxCount)}),
	"requirements": exactly(map[string]check{"content_digest": isBool, "stream_inspection": isBool, "vm_binding": isBool}),
	"proof": exactly(map[string]check{
		"decision_index": whole(0, maxCount), "index": whole(0, maxCount), "decision_leaf_hash": isHash,
		"checkpoint": isText(maxCheckpoint), "path": isPath,
	}),
}

func exactly(members map[string]check) check {
	return func(v any) bool {
		object, ok := v.(map[string]any)
		ok = ok && len(object) == len(members)
		for name, fits := range members {
			ok = ok && fits(object[name])
		}
		return ok
	}
}

func isTime(v any) bool { return whole(0, 253402300799)(v) }

func isHash(v any) bool {
	text, _ := v.(string)
	hash, err := base64.StdEncoding.Strict().DecodeString(text)
	return err == nil && len(hash) == sha256.Size && base64.StdEncoding.EncodeToString(hash) == text
}

func isPath(v any) bool {
	path, ok := v.([]any)
	return ok && len(path) <= 63 && !slices.ContainsFunc(path, func(each any) bool { return !isHash(each) })
}

func isPorts(v any) bool {
	ports, ok := v.([]any)
	last := ""
	for _, each := range ports {
		port, _ := each.(string)
		ok = ok && portText.MatchString(port) && last < port
		last = port
	}
	return ok && len(ports) > 0
}

// admit judges a token that a source host has offered to a destination host, in the order of section 3.
func (j judge) admit(token string, now int64, source, destination string) (p permit, err error) {
	if len(token) > maxPermit {
		return p, refused("permit_size")
	}
	payload, err := j.signed(token)
	if err != nil {
		return p, err
	}
	if err := p.read(payload); err != nil {
		return p, err
	}
	moves := !slices.ContainsFunc(p.Ports, func(port string) bool { return !slices.Contains(moving, port) })
	switch {
	case p.Source == p.Destination || p.Proof.Index <= p.Proof.DecisionIndex:
		return p, refused("permit_format")
	case p.Aud != p.Destination:
		return p, refused("permit_audience")
	case p.Nbf > p.Exp || p.Exp > p.SessionUntil || p.SessionUntil > p.RecoverUntil || p.RecoverUntil > p.Iat+7*86400,
		p.Iat > p.Exp || p.Exp > p.Iat+86400, p.Iat > now+skew, p.Nbf > now+skew, now > p.Exp+skew:
		return p, refused("permit_times")
	case p.Source != source || p.Destination != destination:
		return p, refused("permit_parties")
	case slices.ContainsFunc(p.Ports, func(port string) bool { return !slices.Contains(j.ports, port) }),
		len(p.Ports) > 1 && !moves:
		return p, refused("permit_ports")
	case !j.log.proves(p):
		return p, refused("permit_proof")
	case p.MinimumCRLNumber > j.crlNumber, !slices.Contains(j.seals, p.Seal), p.Requirements["vm_binding"] && !moves:
		return p, refused("permit_requirements")
	}
	for name, wanted := range p.Requirements {
		if wanted && !slices.Contains(j.meets, name) {
			return p, refused("permit_requirements")
		}
	}
	return p, nil
}

// signed is the payload of a token that our key has signed, in its one spelling.
func (j judge) signed(token string) ([]byte, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, refused("permit_format")
	}
	var raw [3][]byte
	for n, part := range parts {
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(part) == 0 || strings.ContainsAny(part, "\r\n") {
			return nil, refused("permit_format")
		}
		raw[n] = decoded
	}
	value, err := decodeStrict(raw[0])
	header, ok := value.(map[string]any)
	if err != nil || !ok || len(header) != 3 || header["typ"] != "sealane-permit+jwt" {
		return nil, refused("permit_format")
	}
	if header["alg"] != "ES256" || header["kid"] != j.keyID || len(raw[2]) != 64 {
		return nil, refused("permit_signature")
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	r, s := new(big.Int).SetBytes(raw[2][:32]), new(big.Int).SetBytes(raw[2][32:])
	half := new(big.Int).Rsh(elliptic.P256().Params().N, 1)
	if s.Cmp(half) > 0 || !ecdsa.Verify(j.key, digest[:], r, s) {
		return nil, refused("permit_signature")
	}
	return raw[1], nil
}

// read takes the payload, whose bytes are what its members give when they are written again, and makes the log's entry.
func (p *permit) read(payload []byte) error {
	value, err := decodeStrict(payload)
	claims, ok := value.(map[string]any)
	if err != nil || !ok || !exactly(claimShapes)(value) || !bytes.Equal(compact(claims), payload) {
		return refused("permit_format")
	}
	if err := json.Unmarshal(payload, p); err != nil {
		return refused("permit_format")
	}
	delete(claims, "proof")
	p.entry = compact(map[string]any{
		"claims": claims, "kind": "sealane-permit",
		"decision": map[string]any{"index": p.Proof.DecisionIndex, "leaf_hash": p.Proof.DecisionLeaf},
	})
	return nil
}

// readPermitKey takes a SubjectPublicKeyInfo, and makes the id by which permits name it.
func readPermitKey(der []byte) (*ecdsa.PublicKey, string, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, "", err
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, "", violation("no key of P-256")
	}
	sum := sha256.Sum256(der)
	return key, hex.EncodeToString(sum[:8]), nil
}

// readJudge pins what the two files hold: the permit key as PEM, the log's as a verifier key.
func readJudge(permitFile, logFile string) (j judge, err error) {
	data, err := os.ReadFile(permitFile)
	if err != nil {
		return j, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return j, violation("no permit key")
	}
	if j.key, j.keyID, err = readPermitKey(block.Bytes); err != nil {
		return j, err
	}
	if data, err = os.ReadFile(logFile); err != nil {
		return j, err
	}
	j.log, err = parseLogKey(string(data))
	j.ports, j.seals = []string{"memory"}, []string{"sealane"}
	return j, err
}
