package rpcwire_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// duplexServer answers lines: each in several parts. It tells ended when a call is over.
func duplexServer(t *testing.T, host *testkit.Host, ended chan<- error) {
	t.Helper()
	l, err := host.Listen(8300)
	if err != nil {
		t.Fatal(err)
	}
	srv := rpcwire.NewServer(nil, []rpcwire.StreamMethod{{Name: "Lines", Handle: func(_ context.Context, _ rpcwire.Peer, decode func(any) error, in io.Reader, reply func(any) error, out io.Writer) error {
		var req echo
		if err := decode(&req); err != nil {
			return err
		}
		if req.Text == "refuse" {
			return wireerr.ErrNoLeader
		}
		if err := reply(&echo{req.Text + "!"}); err != nil {
			return err
		}
		lines := bufio.NewScanner(in)
		for lines.Scan() {
			w := out.(interface{ WriteParts(...[]byte) error })
			if err := w.WriteParts([]byte("<"), bytes.Clone(lines.Bytes()), nil, []byte(">\n")); err != nil {
				break
			}
		}
		ended <- lines.Err()
		return nil
	}}}, 0)
	p := rpcwire.NewPort(rpcwire.PortConfig{Listener: l})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- p.Run(ctx) }()
	go func() { done <- srv.Serve(p.Listener(rpcwire.ProtoRPC)) }()
	t.Cleanup(func() {
		srv.Stop()
		cancel()
		<-done
		<-done
	})
}

func TestDuplexGoesBothWays(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		n := testkit.NewNetwork(1)
		server, client := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		ended := make(chan error, 1)
		duplexServer(t, server, ended)
		p := &port{t: t, server: server, client: client}
		c := p.rpc(&rpcwire.Security{})
		address := server.Addr().String() + ":8300"

		// Who begins the call may go; the call goes on.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		var resp echo
		both, err := c.Duplex(ctx, address, "Lines", &echo{"hello"}, &resp)
		cancel()
		if err != nil || resp.Text != "hello!" {
			t.Fatalf("reply %q, %v", resp.Text, err)
		}
		time.Sleep(time.Minute)
		r := bufio.NewReader(both)
		for _, size := range []int{1, 20, 23, 24, 300, 60 << 10} {
			line := bytes.Repeat([]byte("x"), size)
			if _, err := both.Write(append(line, '\n')); err != nil {
				t.Fatal(err)
			}
			got, err := r.ReadString('\n')
			if want := "<" + string(line) + ">\n"; err != nil || got != want {
				t.Fatalf("a line of %d bytes comes back as %d bytes, %v", size, len(got), err)
			}
		}
		both.Close()
		if err := <-ended; err == nil {
			t.Error("the server's side ended as if all had been said")
		}
		if _, err := r.ReadByte(); err == nil {
			t.Error("a closed call was read from")
		}

		if _, err := c.Duplex(t.Context(), address, "Lines", &echo{"refuse"}, &resp); !errors.Is(err, wireerr.ErrNoLeader) {
			t.Errorf("refused: %v", err)
		}
		if _, err := c.Duplex(t.Context(), address, "Other", &echo{}, &resp); !errors.Is(err, rpcwire.ErrUnknownMethod) {
			t.Errorf("a method that the server does not know: %v", err)
		}
		if _, err := c.Duplex(t.Context(), "10.0.0.9:8300", "Lines", &echo{}, &resp); err == nil {
			t.Error("a server that is not there answered")
		} else if _, ok := errors.AsType[*rpcwire.DialError](err); !ok {
			t.Errorf("a server that is not there: %v", err)
		}

		// A connection that breaks ends the call on both sides.
		both, err = c.Duplex(t.Context(), address, "Lines", &echo{}, &resp)
		if err != nil {
			t.Fatal(err)
		}
		client.Crash()
		_, err = both.Read(make([]byte, 1))
		if _, ok := errors.AsType[*rpcwire.LostError](err); !ok {
			t.Errorf("a broken connection: %v", err)
		}
		both.Close()
		if err := <-ended; err == nil {
			t.Error("the server has not noticed that its caller is gone")
		}
	})
}
