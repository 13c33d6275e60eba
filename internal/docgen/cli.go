package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/sarnmesh/sarn/command"
	"github.com/sarnmesh/sarn/command/verb"
)

// commandLine makes the page of commands from what each says with -h.
func commandLine(string) (string, error) {
	for _, pair := range os.Environ() { // what is set here must not be shown as a default
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "SARN_") || strings.HasPrefix(name, "CONSUL_") || strings.HasPrefix(name, "CONNECT_") {
			if err := os.Unsetenv(name); err != nil {
				return "", err
			}
		}
	}
	paths := command.Paths()
	var b strings.Builder
	b.WriteString(notice)
	b.WriteString(commandLineHead)
	b.WriteString("\n| command | what it does |\n| --- | --- |\n")
	texts := map[string]string{}
	for _, path := range paths {
		text, err := help(path)
		if err != nil {
			return "", err
		}
		texts[path] = text
		anchor := strings.ReplaceAll(path, " ", "-")
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", path, anchor, cell(synopsis(text)))
	}
	for _, path := range paths {
		text, _, shared := strings.Cut(texts[path], "\nOptions for reaching an agent:")
		fmt.Fprintf(&b, "\n## %s\n\n```\n%s\n```\n", path, strings.TrimSpace(text))
		if shared {
			b.WriteString("\nAnd the [options for reaching an agent](#reaching-an-agent).\n")
		}
	}
	return b.String(), nil
}

// help is what a command says with -h.
func help(path string) (string, error) {
	var out bytes.Buffer
	args := append(strings.Fields(path), "-h")
	command.Run(context.Background(), args, verb.Streams{In: strings.NewReader(""), Out: &out, Err: &out})
	text := strings.TrimSpace(out.String())
	if !strings.HasPrefix(text, "Usage: ") {
		return "", fmt.Errorf("%s -h begins with %.40q", path, text)
	}
	return strings.ReplaceAll(text, "\t", "  "), nil
}

// synopsis is the first paragraph of a help text below its usage line.
func synopsis(text string) string {
	parts := strings.SplitN(text, "\n\n", 3)
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}
