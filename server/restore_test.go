package server_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
)

// save returns an archive of the state.
func (o *node) save(ctx context.Context) ([]byte, error) {
	_, body, err := operator.SaveSnapshotCall.Stream(ctx, o.Caller(), &operator.SnapshotRequest{}, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func (o *node) restore(ctx context.Context, archive []byte) error {
	_, body, err := operator.RestoreSnapshotCall.Stream(ctx, o.Caller(), &operator.StatusRequest{}, bytes.NewReader(archive))
	if body != nil {
		body.Close()
	}
	return err
}

// gunzip returns what is compressed, nil when that is damaged.
func gunzip(data []byte) []byte {
	in, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	content, err := io.ReadAll(in)
	if err != nil {
		return nil
	}
	return content
}

// files unpacks an archive.
func files(t *testing.T, archive []byte) (names []string, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(gunzip(archive))); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if contents[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func pack(t *testing.T, names []string, contents map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	w := tar.NewWriter(packed)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(contents[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(contents[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// repacked changes the tar file of an archive.
func repacked(t *testing.T, archive []byte, change func([]byte)) []byte {
	t.Helper()
	data := gunzip(archive)
	change(data)
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A damaged archive is refused and changes nothing, wherever the damage is: in the compression, the tar file, the
// metadata, the checksums, or a state whose checksums were made to fit.
func TestADamagedSnapshotChangesNothing(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 51, 1, server.Config{})
		o := c.leader()
		for i := range 20 {
			if err := o.put(t.Context(), fmt.Sprintf("k%d", i), "saved"); err != nil {
				t.Fatal(err)
			}
		}
		archive, err := o.save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := o.put(t.Context(), "k0", "kept"); err != nil {
			t.Fatal(err)
		}
		refused := func(what string, bad []byte) {
			t.Helper()
			if err := o.restore(t.Context(), bad); err == nil {
				t.Fatalf("%s: restored", what)
			}
		}
		r := rand.New(rand.NewPCG(51, 1))
		step := 4 // of what could be tried, so much is
		if testing.Short() {
			step = 32
		}
		for at := range archive {
			bad := bytes.Clone(archive)
			bad[at] ^= byte(1 << r.IntN(8))
			if bytes.Equal(gunzip(bad), gunzip(archive)) {
				continue // a hint in the header, or padding: nothing is damaged
			}
			if r.IntN(step) == 0 || at < 16 || at > len(archive)-16 {
				refused(fmt.Sprintf("bit of byte %d of the archive", at), bad)
			}
		}
		for range 40 {
			n := r.IntN(len(archive))
			refused(fmt.Sprintf("cut to %d bytes", n), archive[:n])
		}
		refused("twice", append(bytes.Clone(archive), archive...))

		names, good := files(t, archive)
		for _, name := range names {
			for range 240 / step {
				changed := map[string][]byte{}
				for n, data := range good {
					changed[n] = bytes.Clone(data)
				}
				at := r.IntN(len(changed[name]))
				changed[name][at] ^= byte(1 << r.IntN(8))
				if name == "SHA256SUMS" && strings.EqualFold(string(changed[name]), string(good[name])) {
					continue // the same number in capitals
				}
				refused(fmt.Sprintf("byte %d of %s", at, name), pack(t, names, changed))
				if name != "state.bin" {
					continue
				}
				// Even where the checksums fit, the state has its own.
				changed["SHA256SUMS"] = fmt.Appendf(nil, "%x  meta.json\n%x  state.bin\n", sha256.Sum256(changed["meta.json"]), sha256.Sum256(changed["state.bin"]))
				refused(fmt.Sprintf("byte %d of a signed state", at), pack(t, names, changed))
			}
			without := map[string][]byte{}
			var others []string
			for _, n := range names {
				if n != name {
					others, without[n] = append(others, n), good[n]
				}
			}
			refused("without "+name, pack(t, others, without))
		}
		for at := range 512 { // the header of the first member
			if r.IntN(step) > 0 || at == 154 || at == 155 {
				continue // the latter end its own checksum
			}
			refused(fmt.Sprintf("byte %d of a tar header", at), repacked(t, archive, func(data []byte) { data[at] ^= 0x01 }))
		}

		if v, err := o.get(t.Context(), "k0", read.Consistent); v != "kept" || err != nil {
			t.Errorf("k0: %q, %v, want what it was", v, err)
		}
		if err := o.restore(t.Context(), archive); err != nil {
			t.Errorf("the good one: %v", err)
		}
		if v, err := o.get(t.Context(), "k0", read.Consistent); v != "saved" || err != nil {
			t.Errorf("k0: %q, %v, want what was saved", v, err)
		}
	})
}

// A restore in the midst of writes leaves all servers with the same state, and what is written after it stays.
func TestRestoreUnderLoad(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 52, 3, server.Config{})
		lead := c.leader()
		if err := lead.put(t.Context(), "before", "1"); err != nil {
			t.Fatal(err)
		}
		archive, err := lead.save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var load sync.WaitGroup
		var mu sync.Mutex
		written := map[string]time.Time{} // when a write began that succeeded
		for w := range 8 {
			load.Go(func() {
				from := c.nodes[w%3]
				for i := 0; ctx.Err() == nil; i++ {
					key, began := fmt.Sprintf("load/%d/%d", w, i), time.Now()
					if from.put(ctx, key, "v") == nil {
						mu.Lock()
						written[key] = began
						mu.Unlock()
					}
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		time.Sleep(time.Second)
		for range 3 {
			if err := c.follower().restore(t.Context(), archive); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		restored := time.Now()
		time.Sleep(time.Second)
		stop()
		load.Wait()
		time.Sleep(time.Second) // what was under way has happened or not

		list := func(o *node, mode read.Mode) string {
			reply, err := kv.ListCall.Call(t.Context(), o.Caller(), &kv.ListRequest{Options: read.Options{Mode: mode}})
			if err != nil {
				return err.Error()
			}
			var keys []string
			for _, e := range reply.Entries {
				keys = append(keys, fmt.Sprintf("%s@%d", e.Key, e.ModifyIndex))
			}
			return strings.Join(keys, " ")
		}
		want := list(lead, read.Consistent)
		if !strings.HasPrefix(want, "before@") {
			t.Errorf("what was saved is gone: %.80s", want)
		}
		for _, o := range c.nodes {
			c.within(10*time.Second, "the same on "+o.name, func() bool { return list(o, read.Stale) == want })
		}
		after := 0
		for key, began := range written {
			if began.After(restored) {
				after++
				if !strings.Contains(want+" ", " "+key+"@") {
					t.Errorf("%s was written after the restore and is gone", key)
				}
			}
		}
		if after == 0 {
			t.Error("nothing was written after the restore")
		}
	})
}
