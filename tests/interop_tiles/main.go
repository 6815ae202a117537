// Command tiles reads a log as torchwood's client of C2SP tlog-tiles sees it, over HTTPS from a gateway's /v1/log.
//
//	tiles BASE VKEY TOKEN-FILE CA-FILE
//
// It opens the checkpoint, reads every entry (each checked against the tree by the client), asks for the first, the middle
// and the last one with its proof, and prints one JSON object. Nothing of Sealane is used, and nothing maps our paths.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type bearer struct {
	token string
	inner http.RoundTripper
}

func (b bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", "Bearer "+b.token)
	return b.inner.RoundTrip(request)
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tiles:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("usage: tiles BASE VKEY TOKEN-FILE CA-FILE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := httpClient(args[2], args[3])
	if err != nil {
		return err
	}
	fetcher, err := torchwood.NewTileFetcher(args[0], torchwood.WithHTTPClient(client))
	if err != nil {
		return err
	}
	text, err := fetcher.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(args[1])
	if err != nil {
		return err
	}
	opened, err := note.Open(text, note.VerifierList(verifier))
	if err != nil {
		return err
	}
	checkpoint, err := torchwood.ParseCheckpoint(opened.Text)
	if err != nil {
		return err
	}
	tree := tlog.Tree{N: checkpoint.N, Hash: checkpoint.Hash}
	reader, err := torchwood.NewClient(fetcher)
	if err != nil {
		return err
	}
	entries := int64(0)
	for entries < tree.N {
		before := entries
		for index := range reader.Entries(ctx, tree, entries) {
			if index != entries {
				return fmt.Errorf("entry %d came where %d was due", index, entries)
			}
			entries++
		}
		if err := reader.Err(); err != nil {
			return err
		}
		if entries == before {
			return fmt.Errorf("no entries from %d on", entries)
		}
	}
	for _, index := range []int64{0, tree.N / 2, tree.N - 1} {
		if _, _, err := reader.Entry(ctx, tree, index); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"origin": checkpoint.Origin, "size": tree.N, "entries": entries})
}

func httpClient(tokenFile, caFile string) (*http.Client, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	return &http.Client{Timeout: 20 * time.Second, Transport: bearer{string(bytes.TrimSpace(token)), transport}}, nil
}
