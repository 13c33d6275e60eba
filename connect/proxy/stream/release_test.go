package stream

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"github.com/sarnmesh/sarn/internal/testkit"
)

func TestHandshakeBuffersAreReleased(t *testing.T) {
	if len(handshakeBuffers) != 2 {
		t.Fatal("crypto/tls keeps its buffers elsewhere now: find them, or do without")
	}
	cert := testkit.NewCA(t, "ca").Issue("x")
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
	server := tls.Server(Below(b), &tls.Config{Certificates: []tls.Certificate{*cert}})
	go func() {
		client.Write([]byte("one"))
		client.Write([]byte("two"))
		client.Close()
	}()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	releaseHandshake(server)
	p := make([]byte, 2)
	io.ReadFull(server, p) // leaves something in the buffers
	releaseHandshake(server)
	rest, err := io.ReadAll(server)
	if got := string(p) + string(rest); got != "onetwo" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}
