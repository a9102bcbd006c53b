// Tells a witness (filippo.io/torchwood/cmd/litewitness) of a log: its name and the key that it signs with.
//
//	go run . DATABASE ORIGIN VKEY
package main

import (
	"crypto/sha256"
	"encoding/base64"
	"log"
	"os"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: go run . DATABASE ORIGIN VKEY")
	}
	database, origin, key := os.Args[1], os.Args[2], os.Args[3]
	connection, err := sqlite.OpenConn(database, sqlite.OpenReadWrite)
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	empty := sha256.Sum256(nil)
	root := base64.StdEncoding.EncodeToString(empty[:])
	execute := func(statement string, arguments ...any) {
		if err := sqlitex.Execute(connection, statement, &sqlitex.ExecOptions{Args: arguments}); err != nil {
			log.Fatal(err)
		}
	}
	execute("INSERT OR IGNORE INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)", origin, root)
	execute("INSERT INTO key (origin, key) VALUES (?, ?)", origin, key)
}
