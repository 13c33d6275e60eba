//go:build unix

package connectcmd

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sarnmesh/sarn/command/verb"
)

func TestPipeBootstrapCopiesAndRemoves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1)
	go func() {
		data, err := os.ReadFile(path)
		if err != nil {
			read <- err.Error()
			return
		}
		read <- string(data)
	}()
	var out bytes.Buffer
	for _, v := range Verbs() {
		if v.Path != "connect envoy pipe-bootstrap" {
			continue
		}
		c, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(`{"node":1}`), Out: &out, Err: &out})()
		if err != nil {
			t.Fatal(err)
		}
		if code := c.Run([]string{path}); code != 0 {
			t.Fatalf("exit %d: %s", code, &out)
		}
	}
	if got := <-read; got != `{"node":1}` {
		t.Errorf("the reader got %q", got)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pipe is still there: %v", err)
	}
}
