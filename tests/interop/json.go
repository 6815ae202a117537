package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"unicode/utf8"
)

// decodeStrict reads one JSON value, and nothing after it, in which no member stands twice and no text has half of a
// surrogate pair. Go's own decoder takes the last of two members, and puts another character in place of a half.
func decodeStrict(data []byte) (any, error) {
	if !utf8.Valid(data) || hasHalfPair(data) {
		return nil, violation("not the JSON of whole characters")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	value, err := readValue(decoder, 0)
	if err != nil {
		return nil, violation("not JSON, or ambiguous JSON")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, violation("something after the value")
	}
	return value, nil
}

func readValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	opening, isDelimiter := token.(json.Delim)
	if !isDelimiter {
		return token, nil
	}
	if depth > 8 {
		return nil, violation("nested too deeply")
	}
	object, list := map[string]any{}, []any{}
	for decoder.More() {
		var name string
		if opening == '{' {
			key, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			name = key.(string)
			if _, twice := object[name]; twice {
				return nil, violation("a member twice")
			}
		}
		value, err := readValue(decoder, depth+1)
		if err != nil {
			return nil, err
		}
		object[name] = value
		list = append(list, value)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, err
	}
	if opening == '{' {
		return object, nil
	}
	return list, nil
}

// hasHalfPair: whether an escape names one half of a surrogate pair without the other.
func hasHalfPair(data []byte) bool {
	unit := func(at int) uint64 {
		if at+6 > len(data) || data[at] != '\\' || data[at+1] != 'u' {
			return 0
		}
		value, _ := strconv.ParseUint(string(data[at+2:at+6]), 16, 16)
		return value
	}
	for at := 0; at < len(data); at++ {
		if data[at] != '\\' {
			continue
		}
		if first, second := unit(at), unit(at+6); 0xd800 <= first && first < 0xe000 {
			if first >= 0xdc00 || second < 0xdc00 || second >= 0xe000 {
				return true
			}
			at += 6
		}
		at++ // what is escaped
	}
	return false
}
