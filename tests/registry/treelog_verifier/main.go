// Reads a log as golang.org/x/mod/sumdb, the code of Go's checksum database, reads one:
// URL KEY: checks the signed head, every tile up to it, every entry, and that the tree began with each smaller one.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func get(path string) []byte {
	request, _ := http.NewRequest("GET", os.Args[1]+path, nil)
	if token := os.Getenv("TOKEN"); token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(request)
	check(err)
	body, err := io.ReadAll(answer.Body)
	check(err)
	if answer.StatusCode != 200 {
		check(fmt.Errorf("%s: %s", path, answer.Status))
	}
	return body
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// C2SP tlog-tiles has the tiles of height 8 without their height.
func place(tile tlog.Tile) string {
	return "/tile/" + strings.Replace(strings.TrimPrefix(tile.Path(), "tile/8/"), "data/", "entries/", 1)
}

type reader struct{}

func (reader) Height() int                           { return 8 }
func (reader) SaveTiles([]tlog.Tile, [][]byte)       {}
func (reader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		found = append(found, get(place(tile)))
	}
	return found, nil
}

func main() {
	verifier, err := note.NewVerifier(os.Args[2])
	check(err)
	signed, err := note.Open(get("/checkpoint"), note.VerifierList(verifier))
	check(err)
	lines := strings.Split(signed.Text, "\n")
	if lines[0] != verifier.Name() {
		check(fmt.Errorf("origin %q, key %q", lines[0], verifier.Name()))
	}
	var size int64
	fmt.Sscan(lines[1], &size)
	raw, err := base64.StdEncoding.DecodeString(lines[2])
	check(err)
	var root tlog.Hash
	copy(root[:], raw)
	hashes := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, reader{})
	var entries [][]byte
	for at := int64(0); at < size; at += 256 {
		width := min(256, int(size-at))
		data := get(place(tlog.Tile{H: 8, L: -1, N: at / 256, W: width}))
		for ; len(data) > 0; width-- {
			length := int(binary.BigEndian.Uint16(data))
			entries = append(entries, bytes.Clone(data[2:2+length]))
			data = data[2+length:]
		}
		if width != 0 {
			check(fmt.Errorf("bundle at %d: other entries than its width", at))
		}
	}
	for at, entry := range entries {
		proof, err := tlog.ProveRecord(size, int64(at), hashes)
		check(err)
		check(tlog.CheckRecord(proof, size, root, int64(at), tlog.RecordHash(entry)))
		old, err := tlog.TreeHash(int64(at+1), hashes)
		check(err)
		tree, err := tlog.ProveTree(size, int64(at+1), hashes)
		check(err)
		check(tlog.CheckTree(tree, size, root, int64(at+1), old))
	}
	for _, entry := range entries {
		fmt.Println(string(entry))
	}
}
