package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
)

// Directions of a lane, section 4.
const (
	forth = 0 // from S to D
	back  = 1
)

const framesPerEpoch = 1 << 16

// expand is HKDF-Expand of RFC 5869 with SHA-384.
func expand(secret []byte, info []byte, length int) []byte {
	var out, block []byte
	for n := byte(1); len(out) < length; n++ {
		mac := hmac.New(sha512.New384, secret)
		mac.Write(block)
		mac.Write(info)
		mac.Write([]byte{n})
		block = mac.Sum(nil)
		out = append(out, block...)
	}
	return out[:length]
}

// exporterContext is the context of section 4; leaves are SHA-256 of the certificates' DER.
func exporterContext(permits []string, leafS, leafD []byte, session []byte, attempt uint32) []byte {
	var listed []byte
	for _, permit := range permits {
		listed = binary.BigEndian.AppendUint32(listed, uint32(len(permit)))
		listed = append(listed, permit...)
	}
	all := binary.BigEndian.AppendUint32(nil, uint32(len(listed)))
	for _, part := range [][]byte{listed, leafS, leafD, session} {
		all = append(all, part...)
	}
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(all, attempt))
	return sum[:]
}

func connectionID(secret []byte) []byte {
	return expand(secret, []byte("sealane 1 connection"), 16)
}

func prefaceKey(secret []byte, channel uint16) []byte {
	return expand(secret, binary.BigEndian.AppendUint16([]byte("sealane 1 preface"), channel), 48)
}

func laneSecret(secret []byte, channel uint16, direction byte) []byte {
	info := binary.BigEndian.AppendUint16([]byte("sealane 1 lane"), channel)
	return expand(secret, append(info, direction), 48)
}

func nextLaneSecret(lane []byte) []byte {
	return expand(lane, []byte("next"), 48)
}

func epochKey(lane []byte) (key, iv []byte) {
	return expand(lane, []byte("key"), 32), expand(lane, []byte("iv"), 12)
}
