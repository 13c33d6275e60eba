package testkit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func pair(t *testing.T, a, b *Host) (net.Conn, net.Conn) {
	t.Helper()
	l, err := b.Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := a.Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		n.SetAll(Link{Delay: 5 * time.Millisecond, Loss: 0.1})
		c, s := pair(t, a, b)
		want := bytes.Repeat([]byte("sarn"), 500_000) // more than the window
		go func() {
			if _, err := c.Write(want); err != nil {
				t.Error(err)
			}
			c.Close()
		}()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(want))
		}
		s.Close()
	})
}

func TestStreamDelayIsVirtual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		n.SetAll(Link{Delay: time.Second})
		start := time.Now()
		c, s := pair(t, a, b)
		defer c.Close()
		defer s.Close()
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("dialled in %v, want a round trip of 2s", got)
		}
		start = time.Now()
		c.Write([]byte("x"))
		s.Read(make([]byte, 1))
		if got := time.Since(start); got != time.Second {
			t.Errorf("arrived after %v, want 1s", got)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		c, s := pair(t, a, b)
		defer c.Close()
		defer s.Close()
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v, want deadline exceeded", err)
		}
		c.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(make([]byte, 2*window)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write to a full window: %v, want deadline exceeded", err)
		}
	})
}

func TestPartitionHoldsStreamsAndDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		c, s := pair(t, a, b)
		defer c.Close()
		defer s.Close()
		n.Partition([]*Host{a}, []*Host{b})
		c.Write([]byte("x"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, "10.0.0.2:80"); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("dial over a partition: %v, want a timeout", err)
		}
		time.AfterFunc(time.Minute, n.Heal)
		start := time.Now()
		if _, err := s.Read(make([]byte, 1)); err != nil || time.Since(start) != time.Minute {
			t.Errorf("read after %v, %v; want when the partition healed", time.Since(start), err)
		}
	})
}

func TestCrashResetsAndFreesPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		c, _ := pair(t, a, b)
		defer c.Close()
		b.Crash()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read from a crashed host: %v, want a reset", err)
		}
		if _, err := a.Dial(t.Context(), "10.0.0.2:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want refused", err)
		}
		b.Move("10.0.0.9")
		l, err := b.Listen(80)
		if err != nil || l.Addr().String() != "10.0.0.9:80" {
			t.Errorf("listen after the move: %v, %v", l, err)
		}
		l.Close()
	})
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(7)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		n.SetAll(Link{Delay: time.Millisecond, Loss: 0.5})
		pa, _ := a.ListenPacket(1)
		pb, _ := b.ListenPacket(2)
		defer pa.Close()
		defer pb.Close()
		for range 100 {
			pa.WriteTo([]byte("x"), pb.LocalAddr())
		}
		got := 0
		pb.SetReadDeadline(time.Now().Add(time.Second))
		for {
			_, from, err := pb.ReadFrom(make([]byte, 10))
			if err != nil {
				break
			}
			if from.String() != "10.0.0.1:1" {
				t.Fatalf("from %v", from)
			}
			got++
		}
		if got < 30 || got > 70 {
			t.Errorf("%d of 100 packets arrived over a link that loses half", got)
		}
	})
}

func TestDiskLosesOnlyWhatWasNotSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDisk()
		d.SetSyncTime(time.Millisecond)
		h := d.Open()
		if err := h.StoreLog(&raft.Log{Index: 1, Data: []byte("kept")}); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- h.StoreLog(&raft.Log{Index: 2}) }()
		synctest.Wait()
		d.Crash()
		if err := <-done; !errors.Is(err, ErrCrashed) {
			t.Errorf("write during the crash: %v", err)
		}
		h = d.Open()
		if last, err := h.LastIndex(); last != 1 || err != nil {
			t.Errorf("last index after the crash %d, %v; want 1", last, err)
		}
	})
}
