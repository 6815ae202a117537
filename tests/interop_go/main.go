// Command interop reads a log as the Go project's own packages for signed notes and transparency logs see it.
//
//	interop BASE VKEY [TOKEN-FILE CA-FILE]
//
// BASE is a folder laid out as C2SP tlog-tiles serves it (partial tiles included), or the https URL of a gateway's
// /v1/log. It checks the checkpoint, every entry against its authenticated hash tile, an inclusion proof of each entry,
// and consistency with every power of two below the size; then it prints one JSON object. Nothing of Sealane is used.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

type fetch func(path string) ([]byte, error)

// tiles is a tlog.TileReader over C2SP paths: Go's own have the height in them.
type tiles struct{ fetch fetch }

func (t tiles) Height() int { return height }

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, len(wanted))
	for i, tile := range wanted {
		data, err := t.fetch(strings.Replace(tile.Path(), "tile/8/", "tile/", 1))
		if err != nil {
			return nil, err
		}
		found[i] = data
	}
	return found, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	get, err := source(args)
	if err != nil {
		return err
	}
	tree, origin, err := checkpoint(get, args[1])
	if err != nil {
		return err
	}
	hashes := tlog.TileHashReader(tree, tiles{get})
	root, err := tlog.TreeHash(tree.N, hashes)
	if err != nil {
		return err
	}
	if root != tree.Hash {
		return fmt.Errorf("the tiles have another root than the checkpoint")
	}
	proofs, err := entries(get, tree, hashes)
	if err != nil {
		return err
	}
	consistent := 0
	for n := int64(1); n < tree.N; n *= 2 {
		old, err := tlog.TreeHash(n, hashes)
		if err != nil {
			return err
		}
		proof, err := tlog.ProveTree(tree.N, n, hashes)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, n, old); err != nil {
			return err
		}
		consistent++
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"origin": origin, "size": tree.N, "inclusion_proofs": proofs, "consistency_proofs": consistent,
	})
}

func checkpoint(get fetch, vkey string) (tlog.Tree, string, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tlog.Tree{}, "", err
	}
	data, err := get("checkpoint")
	if err != nil {
		return tlog.Tree{}, "", err
	}
	opened, err := note.Open(data, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, "", err
	}
	lines := strings.SplitN(opened.Text, "\n", 4)
	if len(lines) < 4 {
		return tlog.Tree{}, "", fmt.Errorf("the checkpoint is none")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, "", err
	}
	blob, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(blob) != tlog.HashSize {
		return tlog.Tree{}, "", fmt.Errorf("the checkpoint's root is malformed")
	}
	var root tlog.Hash
	copy(root[:], blob)
	return tlog.Tree{N: size, Hash: root}, lines[0], nil
}

func entries(get fetch, tree tlog.Tree, hashes tlog.HashReader) (int, error) {
	proofs := 0
	for first := int64(0); first < tree.N; first += 1 << height {
		width := tree.N - first
		if width > 1<<height {
			width = 1 << height
		}
		tile := tlog.Tile{H: height, L: 0, N: first >> height, W: int(width)}
		bundle, err := get(strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1))
		if err != nil {
			return 0, err
		}
		for index := first; index < first+width; index++ {
			if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
				return 0, fmt.Errorf("the bundle of entry %d is too short", index)
			}
			end := 2 + int(binary.BigEndian.Uint16(bundle))
			leaf := tlog.RecordHash(bundle[2:end])
			bundle = bundle[end:]
			proof, err := tlog.ProveRecord(tree.N, index, hashes)
			if err != nil {
				return 0, err
			}
			if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, leaf); err != nil {
				return 0, fmt.Errorf("entry %d: %w", index, err)
			}
			proofs++
		}
		if len(bundle) != 0 {
			return 0, fmt.Errorf("bundle %d goes on", first>>height)
		}
	}
	return proofs, nil
}

func source(args []string) (fetch, error) {
	if len(args) == 2 {
		return func(path string) ([]byte, error) { return os.ReadFile(filepath.Join(args[0], path)) }, nil
	}
	if len(args) != 4 {
		return nil, fmt.Errorf("usage: interop BASE VKEY [TOKEN-FILE CA-FILE]")
	}
	token, err := os.ReadFile(args[2])
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(args[3])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}
	return func(path string) ([]byte, error) {
		request, err := http.NewRequest("GET", args[0]+"/"+path, nil)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
		answer, err := client.Do(request)
		if err != nil {
			return nil, err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s: %s", path, answer.Status)
		}
		return io.ReadAll(io.LimitReader(answer.Body, 64<<20))
	}, nil
}
