package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"math/bits"
	"strconv"
	"strings"
)

// logKey is a C2SP verifier key of an Ed25519 log: <origin>+<key id>+<base64 of 01 and the key>.
type logKey struct {
	origin string
	id     []byte
	public ed25519.PublicKey
}

func parseLogKey(text string) (k logKey, err error) {
	parts := strings.SplitN(strings.TrimSpace(text), "+", 3)
	if len(parts) != 3 {
		return k, violation("no log key")
	}
	blob, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(blob) != 1+ed25519.PublicKeySize || blob[0] != 1 {
		return k, violation("no log key")
	}
	id := sha256.Sum256(append([]byte(parts[0]+"\n"), blob...))
	if hex.EncodeToString(id[:4]) != parts[1] {
		return k, violation("a log key of another id")
	}
	return logKey{parts[0], id[:4], blob[1:]}, nil
}

// proves: whether the permit's entry is in the log whose checkpoint it shows.
func (k logKey) proves(p permit) bool {
	body, signatures, found := cutLast(p.Proof.Checkpoint, "\n\n")
	lines := strings.Split(body, "\n")
	if !found || len(lines) != 3 || lines[0] != k.origin || !k.signed(body+"\n", signatures) {
		return false
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	root, rootErr := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || rootErr != nil || lines[1] != strconv.FormatUint(size, 10) {
		return false
	}
	var path [][]byte
	for _, text := range p.Proof.Path {
		node, _ := base64.StdEncoding.DecodeString(text)
		path = append(path, node)
	}
	found, reached := inclusion(leafHash(p.entry), p.Proof.Index, size, path)
	return found && bytes.Equal(reached, root)
}

func cutLast(text, separator string) (before, after string, found bool) {
	at := strings.LastIndex(text, separator)
	if at < 0 {
		return "", "", false
	}
	return text[:at], text[at+len(separator):], true
}

// signed: whether our key has signed the note, and no signature that names it is wrong.
func (k logKey) signed(body, signatures string) bool {
	ours := 0
	for _, line := range strings.Split(strings.TrimSuffix(signatures, "\n"), "\n") {
		fields := strings.Split(line, " ")
		if len(fields) != 3 || fields[0] != "—" {
			return false
		}
		blob, err := base64.StdEncoding.Strict().DecodeString(fields[2])
		if err != nil || len(blob) <= 4 {
			return false
		}
		if fields[1] != k.origin || !bytes.Equal(blob[:4], k.id) {
			continue
		}
		if !ed25519.Verify(k.public, []byte(body), blob[4:]) {
			return false
		}
		ours++
	}
	return ours > 0
}

func leafHash(entry []byte) []byte {
	sum := sha256.Sum256(append([]byte{0}, entry...))
	return sum[:]
}

func nodeHash(left, right []byte) []byte {
	sum := sha256.Sum256(append(append([]byte{1}, left...), right...))
	return sum[:]
}

// inclusion is RFC 9162, section 2.1.3.2, by the bits of the index: the root to which a path leads, if it has the length.
func inclusion(leaf []byte, index, size uint64, path [][]byte) (bool, []byte) {
	if index >= size {
		return false, nil
	}
	inner := bits.Len64(index ^ (size - 1))
	if len(path) != inner+bits.OnesCount64(index>>inner) {
		return false, nil
	}
	found := leaf
	for level, sibling := range path {
		if level >= inner || index>>level&1 == 1 {
			found = nodeHash(sibling, found)
		} else {
			found = nodeHash(found, sibling)
		}
	}
	return true, found
}
