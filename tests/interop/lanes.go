package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	prefaceBytes = 56
	headerBytes  = 16
	tagBytes     = 16
	maxPayload   = 1 << 20

	typeData  = 0
	typeFin   = 1
	typeReset = 2
)

// violation is what the document calls one: the sender broke the protocol, or someone on the way changed bytes.
type violation string

func (v violation) Error() string { return string(v) }

func makePreface(secret []byte, channel uint16) []byte {
	head := binary.BigEndian.AppendUint16([]byte("SLN1"), channel)
	head = append(append(head, 0, 0), connectionID(secret)...)
	mac := hmac.New(sha512.New384, prefaceKey(secret, channel))
	mac.Write(head)
	return append(head, mac.Sum(nil)[:32]...)
}

// checkPreface returns the channel that an authentic preface names.
func checkPreface(secret, preface []byte) (uint16, error) {
	if len(preface) != prefaceBytes || string(preface[:4]) != "SLN1" || preface[6] != 0 || preface[7] != 0 {
		return 0, violation("a preface with a wrong fixed byte")
	}
	channel := binary.BigEndian.Uint16(preface[4:])
	if channel > 255 {
		return 0, violation("a channel out of range")
	}
	if !hmac.Equal(preface, makePreface(secret, channel)) {
		return 0, violation("a preface that does not authenticate")
	}
	return channel, nil
}

// lane is the state of one direction of one channel: the number of the next frame, and the epoch's cipher.
type lane struct {
	secret []byte // of the epoch after the cipher's
	aead   cipher.AEAD
	iv     []byte
	left   int
	seq    uint64
	ended  bool
	clear  bool // inside TLS: no key and no tag of its own
}

func newLane(secret []byte, channel uint16, direction byte, first uint64) *lane {
	return &lane{secret: laneSecret(secret, channel, direction), seq: first}
}

// newClearLane is a direction of a lane that is TLS itself.
func newClearLane(first uint64) *lane { return &lane{seq: first, clear: true} }

func (l *lane) advance() {
	key, iv := epochKey(l.secret)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // a key of 32 bytes is never refused
	}
	if l.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	l.iv, l.left, l.secret = iv, framesPerEpoch, nextLaneSecret(l.secret)
}

// nonce is that of the frame that is due; it must be taken once for each.
func (l *lane) nonce() []byte {
	if l.left == 0 {
		l.advance()
	}
	l.left--
	nonce := bytes.Clone(l.iv)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], l.seq)
	for i, b := range seq {
		nonce[4+i] ^= b
	}
	return nonce
}

func (l *lane) seal(kind byte, payload []byte) []byte {
	header := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	header = binary.BigEndian.AppendUint64(append(header, kind, 0, 0, 0), l.seq)
	frame := bytes.Clone(header)
	if l.clear {
		frame = append(frame, payload...)
	} else {
		nonce := l.nonce()
		frame = l.aead.Seal(frame, nonce, payload, header)
	}
	l.seq++
	l.ended = kind != typeData
	return frame
}

// read takes the next frame. The end of the stream is io.EOF between frames and io.ErrUnexpectedEOF inside one: neither
// is the end of the channel, which only a fin is.
func (l *lane) read(from io.Reader) (kind byte, payload []byte, err error) {
	var header [headerBytes]byte
	if _, err = io.ReadFull(from, header[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(header[:])
	kind = header[4]
	switch {
	case l.ended:
		return 0, nil, violation("a frame after fin or reset")
	case header[5] != 0 || header[6] != 0 || header[7] != 0:
		return 0, nil, violation("a byte that must be zero")
	case kind == typeData && (size < 1 || size > maxPayload),
		kind == typeFin && size != 0, kind == typeReset && size != 2, kind > typeReset:
		return 0, nil, violation("an unknown type, or a length that its type does not have")
	case binary.BigEndian.Uint64(header[8:]) != l.seq:
		return 0, nil, violation(fmt.Sprintf("not frame %d, which is due", l.seq))
	}
	if payload, err = l.open(from, header[:], size); err != nil {
		return 0, nil, err
	}
	l.seq++
	l.ended = kind != typeData
	return kind, payload, nil
}

func (l *lane) open(from io.Reader, header []byte, size uint32) ([]byte, error) {
	if !l.clear {
		size += tagBytes
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(from, body); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	if l.clear {
		return body, nil
	}
	nonce := l.nonce()
	payload, err := l.aead.Open(body[:0], nonce, body, header)
	if err != nil {
		l.ended = true // nothing may be opened after a forgery
		return nil, violation("a frame that does not authenticate")
	}
	return payload, nil
}
