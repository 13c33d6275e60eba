package verb

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// progressInterval is how often a line of progress is written anew.
const progressInterval = 200 * time.Millisecond

// Progress shows on standard error how much is read of r, if that is a terminal. The returned function ends that, and
// clears the line.
func (c *Call) Progress(what string, r io.Reader) (watched io.Reader, end func()) {
	if !Terminal(c.Err) {
		return r, func() {}
	}
	p := &progress{Reader: r, out: c.Err, what: what}
	return p, p.end
}

// Waiting shows on standard error, if that is a terminal, what is waited for and how long already, until the returned
// function is called.
func (c *Call) Waiting(what string) (end func()) {
	if !Terminal(c.Err) {
		return func() {}
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		begin, tick := time.Now(), time.NewTicker(time.Second)
		defer tick.Stop()
		fmt.Fprintf(c.Err, "%s …", what)
		for {
			select {
			case <-stop:
				fmt.Fprint(c.Err, clearLine)
				return
			case <-tick.C:
				fmt.Fprintf(c.Err, clearLine+"%s … %v", what, time.Since(begin).Truncate(time.Second))
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop); <-done })
}

// clearLine puts the cursor at the beginning of an empty line.
const clearLine = "\r\x1b[K"

// A progress tells how much was read.
type progress struct {
	io.Reader
	out  io.Writer
	what string

	n    int64
	told time.Time
}

// Read reads from the reader that is watched.
func (p *progress) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.n += int64(n)
	if now := time.Now(); now.Sub(p.told) >= progressInterval {
		p.told = now
		fmt.Fprintf(p.out, clearLine+"%s … %.1f MiB", p.what, float64(p.n)/(1<<20))
	}
	return n, err
}

func (p *progress) end() { fmt.Fprint(p.out, clearLine) }

// Terminal reports whether a person sees what is written to w.
func Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}

// A Colour is how a word is shown to a person.
type Colour string

// Colours by what they mean.
const (
	Good Colour = "\x1b[32m"
	Bad  Colour = "\x1b[31m"
)

// Paint gives a text a colour, where standard output is a terminal and NO_COLOR is not set.
func (c *Call) Paint(colour Colour, text string) string {
	if os.Getenv("NO_COLOR") != "" || !Terminal(c.Out) {
		return text
	}
	return string(colour) + text + "\x1b[0m"
}
