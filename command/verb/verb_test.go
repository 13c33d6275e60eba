package verb

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	tests := []struct {
		name string
		rows [][]string
		want string
	}{
		{"no rows", nil, ""},
		{"columns are as wide as their longest cell, the last is not padded", [][]string{{"Node", "ID", "DC"}, {"n", "12345", "dc1"}}, "Node  ID     DC\nn     12345  dc1\n"},
		{"empty cells keep their column", [][]string{{"a", "", "c"}, {"", "bb", ""}}, "a      c\n   bb  \n"},
		{"width counts letters", [][]string{{"é", "x"}, {"ab", "y"}}, "é   x\nab  y\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Table(tt.rows)); diff != "" {
				t.Errorf("table (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	tests := []struct {
		name       string
		args       []string
		err        error
		code       int
		out, first string // standard output, and the first line of standard error
	}{
		{"success", nil, nil, 0, "ran\n", ""},
		{"failure", nil, Errorf("Broken: %d", 7), 1, "ran\n", "Broken: 7"},
		{"a code of its own", nil, Exit(2, errors.New("None.")), 2, "ran\n", "None."},
		{"silent", nil, Exit(2, nil), 2, "ran\n", ""},
		{"wrong usage shows help", nil, Usagef("Missing X"), 1, "ran\n", "Missing X"},
		{"unknown flag", []string{"-verbos"}, nil, 3, "", "flag provided but not defined: -verbos"},
		{"flags end at the first argument", []string{"-verbose", "a", "-x"}, nil, 0, "ran a -x\n", ""},
		{"two dashes", []string{"--verbose=false", "--", "-x"}, nil, 0, "ran -x\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := Verb{Path: "try", Synopsis: "Try", FlagExit: 3, Setup: func(f *flag.FlagSet) func(*Call) error {
				f.Bool("verbose", false, "talk")
				return func(c *Call) error {
					c.Println(strings.TrimSpace("ran " + strings.Join(c.Args, " ")))
					return tt.err
				}
			}}
			var out, errs bytes.Buffer
			c, err := v.Factory(context.Background(), Streams{strings.NewReader(""), &out, &errs})()
			if err != nil {
				t.Fatal(err)
			}
			code := c.Run(tt.args)
			first, _, _ := strings.Cut(errs.String(), "\n")
			if code != tt.code || out.String() != tt.out || first != tt.first {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q first", code, &out, &errs, tt.code, tt.out, tt.first)
			}
		})
	}
}

// The flag for a token file beats the one for a token, which beats the environment, where the file beats the token too.
func TestTokenPrecedence(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flagFile, envFile, blank := file("flag", "flag-file\n"), file("env", " env-file "), file("blank", "\n")
	tests := []struct {
		name, flagFile, flag, envFile, env, want string
	}{
		{"flag file", flagFile, "flag", envFile, "env", "flag-file"},
		{"flag", "", "flag", envFile, "env", "flag"},
		{"environment's file", "", "", envFile, "env", "env-file"},
		{"environment", "", "", "", "env", "env"},
		{"a blank file is no token", blank, "flag", "", "env", "flag"},
		{"none", "", "", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("CONSUL_HTTP_TOKEN", tt.env)
			t.Setenv("CONSUL_HTTP_TOKEN_FILE", tt.envFile)
			c := &Call{opt: options{token: tt.flag, tokenFile: tt.flagFile}}
			got, err := c.TokenFlag()
			if err != nil || got != tt.want {
				t.Errorf("token %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("from file"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, arg, want string }{
		{"itself", "x", "x"},
		{"empty", "", ""},
		{"a longer dash is itself", "-x", "-x"},
		{"standard input", "-", "from stdin\n"},
		{"file", "@" + path, "from file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &Call{Streams: Streams{In: strings.NewReader("from stdin\n")}}
			got, err := c.Data(tt.arg)
			if err != nil || got != tt.want {
				t.Errorf("Data(%q) = %q, %v; want %q", tt.arg, got, err, tt.want)
			}
		})
	}
	if _, err := new(Call).Data("@" + path + "x"); err == nil || !strings.HasPrefix(err.Error(), "Failed to read file: open ") {
		t.Errorf("missing file: %v", err)
	}
}
