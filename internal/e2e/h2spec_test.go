package e2e

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// TestServerSpeaksHTTP2AsH2specExpects runs every case of h2spec, the strict ones too, against the proxy's codec, in
// both ways to treat an invalid message.
func TestServerSpeaksHTTP2AsH2specExpects(t *testing.T) {
	tool := filepath.Join(os.Getenv("SARN_TOOLS"), "h2spec")
	if os.Getenv("SARN_TOOLS") == "" {
		t.Skip("SARN_TOOLS names no folder with h2spec in it")
	}
	// Late and with a body, so that streams can be counted and windows seen to be kept.
	answer := func(s message.ServerStream) {
		time.Sleep(20 * time.Millisecond)
		var head message.Response
		head.Status, head.ContentLength = 200, -1
		head.Header.Add("content-type", "text/plain")
		if s.Respond(&head, false) != nil {
			return
		}
		for {
			p, err := s.Read()
			if err != nil && err != io.EOF || s.Write(p, false) != nil {
				return
			}
			if err == io.EOF {
				break
			}
		}
		s.Write([]byte("the end of the answer"), true)
	}
	for name, streamErrors := range map[string]bool{"connection errors": false, "stream errors": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					srv := http2.NewServerConn(c, http2.ServerConfig{Options: http2.Options{MaxStreams: 20, StreamErrors: streamErrors}})
					go srv.Serve(answer)
				}
			}()
			port := ln.Addr().(*net.TCPAddr).Port
			out, err := exec.Command(tool, "--strict", "--timeout", "2", "--port", strconv.Itoa(port)).CombinedOutput()
			if err != nil || !strings.Contains(string(out), ", 0 skipped, 0 failed") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
