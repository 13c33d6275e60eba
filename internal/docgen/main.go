// Command docgen writes the reference pages of the manual from what the code says: the configuration keys from the tags
// and comments of the agent's settings, the command line from the help of every command, the HTTP API from the routes
// of the server. What code can't say stands in the tables of this package, and a test holds them against the code.
package main

//go:generate go run .

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// pages makes each page of the reference from the tree at root.
var pages = map[string]func(root string) (string, error){
	"configuration.md": configuration,
	"cli.md":           commandLine,
	"http.md":          httpAPI,
}

// notice stands at the top of every page.
const notice = "<!-- Made by `make generate` from the code. Do not edit. -->\n\n"

// folder is where the pages are, from the root of the tree.
const folder = "website/docs/reference"

func main() {
	root := flag.String("root", "../..", "root of the tree")
	flag.Parse()
	if err := write(*root); err != nil {
		fmt.Fprintln(os.Stderr, "docgen:", err)
		os.Exit(1)
	}
}

// write makes every page and stores it.
func write(root string) error {
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		text, err := pages[name](root)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(root, folder, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
