// Verifies an export of the audit trail, a proof, and the tiles that a node serves, with Go's own packages for
// signed notes and transparency logs. It shares no code and no format library with the program that made them.
//
//	go run . EXPORT-FOLDER NODE-URL
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "verify:", err)
		os.Exit(1)
	}
}

func read(path ...string) []byte {
	content, err := os.ReadFile(filepath.Join(path...))
	check(err)
	return content
}

// open verifies a signed checkpoint and answers its tree.
func open(signed []byte, verifiers note.Verifiers) tlog.Tree {
	opened, err := note.Open(signed, verifiers)
	check(err)
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := base64.StdEncoding.DecodeString(lines[2])
	check(err)
	tree := tlog.Tree{N: size}
	copy(tree.Hash[:], root)
	return tree
}

// commitment computes the data of a leaf from a line of the export.
func commitment(line []byte) []byte {
	var entry struct {
		Entry      json.RawMessage
		Salt       string
		Commitment string
	}
	check(json.Unmarshal(line, &entry))
	if entry.Commitment != "" {
		// The entry is past its retention.
		kept, err := hex.DecodeString(entry.Commitment)
		check(err)
		return kept
	}
	salt, err := hex.DecodeString(entry.Salt)
	check(err)
	hash := sha256.New()
	hash.Write([]byte("highwater audit v1\n"))
	hash.Write(salt)
	hash.Write(entry.Entry)
	return hash.Sum(nil)
}

// tiles reads tiles of height 8 from a node, at the paths of c2sp.org/tlog-tiles.
type tiles struct{ url string }

func (t tiles) Height() int { return 8 }

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		// Go writes the height first: tile/8/0/001 is tile/0/001 here.
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		response, err := http.Get(t.url + "/audit/" + path)
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != 200 {
			return nil, fmt.Errorf("%s: %s %v", path, response.Status, err)
		}
		found = append(found, content)
	}
	return found, nil
}

func main() {
	if len(os.Args) != 3 {
		check(fmt.Errorf("usage: go run . EXPORT-FOLDER NODE-URL"))
	}
	folder, url := os.Args[1], os.Args[2]
	var known []note.Verifier
	for _, key := range strings.Fields(string(read(folder, "keys"))) {
		verifier, err := note.NewVerifier(key)
		check(err)
		known = append(known, verifier)
	}
	verifiers := note.VerifierList(known...)
	tree := open(read(folder, "checkpoint"), verifiers)

	// Every entry of the export leads to the signed root.
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for at, index := range indexes {
			found[at] = hashes[index]
		}
		return found, nil
	})
	var leaves [][]byte
	scanner := bufio.NewScanner(bytes.NewReader(read(folder, "entries.ndjson")))
	scanner.Buffer(nil, 4<<20)
	for scanner.Scan() {
		leaf := commitment(scanner.Bytes())
		stored, err := tlog.StoredHashes(int64(len(leaves)), leaf, reader)
		check(err)
		hashes = append(hashes, stored...)
		leaves = append(leaves, leaf)
	}
	check(scanner.Err())
	root, err := tlog.TreeHash(int64(len(leaves)), reader)
	check(err)
	if int64(len(leaves)) != tree.N || root != tree.Hash {
		check(fmt.Errorf("%d entries lead to %v, not to %v over %d", len(leaves), root, tree.Hash, tree.N))
	}
	fmt.Printf("all entries: %d\n", tree.N)

	// The proof of one entry, with the checkpoint in it.
	head, signed, _ := strings.Cut(string(read(folder, "proof")), "\n\n")
	lines := strings.Split(head, "\n")
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	check(err)
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		check(err)
		proof = append(proof, tlog.Hash(hash))
	}
	later := open([]byte(signed), verifiers)
	check(tlog.CheckRecord(proof, later.N, later.Hash, index, tlog.RecordHash(leaves[index])))
	fmt.Printf("proof of entry %d in the tree of %d\n", index, later.N)

	// The tiles of the node lead to the same root, and continue the tree of the export.
	served := tlog.TileHashReader(later, tiles{url})
	again, err := tlog.TreeHash(later.N, served)
	check(err)
	if again != later.Hash {
		check(fmt.Errorf("the tiles lead to %v, not to %v", again, later.Hash))
	}
	continues, err := tlog.ProveTree(later.N, tree.N, served)
	check(err)
	check(tlog.CheckTree(continues, later.N, later.Hash, tree.N, tree.Hash))
	fmt.Printf("tiles: the tree of %d continues that of %d\n", later.N, tree.N)
}
