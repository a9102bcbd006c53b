// Verifies an export of the audit trail, a proof, and the tiles that a node serves, with Go's own packages for
// signed notes and transparency logs. It shares no code and no format library with the program that made them.
//
//	go run . EXPORT-FOLDER NODE-URL
//	go run . event PROOF-FILE KEYS-FILE
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
		// Something was taken out of the entry, or it is past its retention.
		kept, err := hex.DecodeString(entry.Commitment)
		check(err)
		return kept
	}
	return committed("highwater audit v1\n", entry.Salt, string(entry.Entry))
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

// keys reads verifier keys, one a line.
func keys(text []byte) note.Verifiers {
	var known []note.Verifier
	for _, key := range strings.Fields(string(text)) {
		verifier, err := note.NewVerifier(key)
		check(err)
		known = append(known, verifier)
	}
	return note.VerifierList(known...)
}

// cut takes a proof apart: the data of the application, the place of the entry, the hashes that lead to the root,
// and the signed checkpoint.
func cut(proof []byte) (extra []byte, index int64, path tlog.RecordProof, signed []byte) {
	head, rest, _ := strings.Cut(string(proof), "\n\n")
	lines := strings.Split(head, "\n")[1:]
	var err error
	if text, found := strings.CutPrefix(lines[0], "extra "); found {
		extra, err = base64.StdEncoding.DecodeString(text)
		check(err)
		lines = lines[1:]
	}
	index, err = strconv.ParseInt(strings.TrimPrefix(lines[0], "index "), 10, 64)
	check(err)
	return extra, index, hashes(lines[1:]), []byte(rest)
}

func hashes(texts []string) (path []tlog.Hash) {
	for _, text := range texts {
		hash, err := base64.StdEncoding.DecodeString(text)
		check(err)
		path = append(path, tlog.Hash(hash))
	}
	return path
}

// committed computes the data of a leaf.
func committed(domain, salt, record string) []byte {
	bytes, err := hex.DecodeString(salt)
	check(err)
	hash := sha256.New()
	hash.Write([]byte(domain))
	hash.Write(bytes)
	hash.Write([]byte(record))
	return hash.Sum(nil)
}

// event verifies the proof of an event: it leads to the root of its seal, and the seal to a signed checkpoint.
func event(proof []byte, verifiers note.Verifiers) {
	extra, index, path, signed := cut(proof)
	var said struct {
		Event, Salt string
		Index, Size int64
		Path        []string
		Seal        struct{ Entry, Salt string }
	}
	check(json.Unmarshal(extra, &said))
	var seal struct{ Action, Resource, Time, Seen string }
	check(json.Unmarshal([]byte(said.Seal.Entry), &seal))
	var seen struct {
		Events int64
		Root   string
	}
	check(json.Unmarshal([]byte(seal.Seen), &seen))
	root, err := hex.DecodeString(seen.Root)
	check(err)
	if seal.Action != "seal" || seen.Events != said.Size {
		check(fmt.Errorf("the entry does not seal %d events", said.Size))
	}
	leaf := tlog.RecordHash(committed("highwater event v1\n", said.Salt, said.Event))
	check(tlog.CheckRecord(hashes(said.Path), said.Size, tlog.Hash(root), said.Index, leaf))
	tree := open(signed, verifiers)
	entry := tlog.RecordHash(committed("highwater audit v1\n", said.Seal.Salt, said.Seal.Entry))
	check(tlog.CheckRecord(path, tree.N, tree.Hash, index, entry))
	fmt.Printf("event of %s, sealed %s in entry %d of %d: %s\n", seal.Resource, seal.Time, index, tree.N, said.Event)
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "event" {
		event(read(os.Args[2]), keys(read(os.Args[3])))
		return
	}
	if len(os.Args) != 3 {
		check(fmt.Errorf("usage: go run . EXPORT-FOLDER NODE-URL, or go run . event PROOF-FILE KEYS-FILE"))
	}
	folder, url := os.Args[1], os.Args[2]
	verifiers := keys(read(folder, "keys"))
	tree := open(read(folder, "checkpoint"), verifiers)

	// Every entry of the export leads to the signed root.
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for at, index := range indexes {
			found[at] = stored[index]
		}
		return found, nil
	})
	var leaves [][]byte
	scanner := bufio.NewScanner(bytes.NewReader(read(folder, "entries.ndjson")))
	scanner.Buffer(nil, 4<<20)
	for scanner.Scan() {
		leaf := commitment(scanner.Bytes())
		more, err := tlog.StoredHashes(int64(len(leaves)), leaf, reader)
		check(err)
		stored = append(stored, more...)
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
	_, index, proof, signed := cut(read(folder, "proof"))
	later := open(signed, verifiers)
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
