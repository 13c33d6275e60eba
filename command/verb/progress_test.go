package verb

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

// Whoever is no terminal sees neither progress nor colours.
func TestOnlyTerminalsAreDecorated(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, w := range map[string]io.Writer{"buffer": new(bytes.Buffer), "file": file, "null device": null} {
		t.Run(name, func(t *testing.T) {
			c := &Call{Streams: Streams{Out: w, Err: w}}
			if got := c.Paint(Good, "alive"); got != "alive" {
				t.Errorf("painted %q", got)
			}
			r, end := c.Progress("Saving", strings.NewReader("text"))
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
			end()
			c.Waiting("Joining")()
		})
	}
	if b, err := os.ReadFile(file.Name()); err != nil || len(b) > 0 {
		t.Errorf("a file got %q, %v", b, err)
	}
}

func TestProgressTellsWhatWasRead(t *testing.T) {
	var out bytes.Buffer
	p := &progress{Reader: strings.NewReader(strings.Repeat("x", 3<<19)), out: &out, what: "Saving"}
	if n, err := p.Read(make([]byte, 3<<19)); err != nil || n != 3<<19 {
		t.Fatal(n, err)
	}
	p.end()
	if got, want := out.String(), clearLine+"Saving … 1.5 MiB"+clearLine; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
