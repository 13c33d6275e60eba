package snapshot_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/server/snapshot"
)

var state = strings.Repeat("the state ", 1000)

func meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: 1, ID: "2-14-1700000000000", Index: 14, Term: 2, Peers: []byte{1},
		Configuration:      raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "127.0.0.1:8300"}}},
		ConfigurationIndex: 1, Size: int64(len(state)),
	}
}

func archive(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := snapshot.Write(&buf, meta(), strings.NewReader(state), time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestArchiveKeepsStateAndMetadata(t *testing.T) {
	var got bytes.Buffer
	m, err := snapshot.Read(bytes.NewReader(archive(t)), &got)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != state {
		t.Error("the state differs")
	}
	if diff := cmp.Diff(meta(), m); diff != "" {
		t.Error(diff)
	}
}

func TestArchiveForm(t *testing.T) {
	z, err := gzip.NewReader(bytes.NewReader(archive(t)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %o", h.Name, h.Mode))
		data, _ := io.ReadAll(r)
		if h.Name == "meta.json" {
			want := `{"Version":1,"ID":"2-14-1700000000000","Index":14,"Term":2,"Peers":"AQ==","Configuration":{"Servers":[{"Suffrage":0,"ID":"a","Address":"127.0.0.1:8300"}]},"ConfigurationIndex":1,"Size":10000}` + "\n"
			if string(data) != want {
				t.Errorf("meta.json is %s, want %s", data, want)
			}
		}
	}
	if diff := cmp.Diff([]string{"meta.json 600", "state.bin 600", "SHA256SUMS 600"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestWriteRefusesAnotherSize(t *testing.T) {
	for _, s := range []string{state[1:], state + "x"} {
		if err := snapshot.Write(io.Discard, meta(), strings.NewReader(s), time.Time{}); err == nil {
			t.Errorf("%d bytes were taken for %d", len(s), len(state))
		}
	}
}

type file struct{ name, data string }

func pack(files []file, tail []byte) []byte {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, f := range files {
		w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o600, Size: int64(len(f.data))})
		io.WriteString(w, f.data)
	}
	w.Close()
	z.Write(tail)
	z.Close()
	return buf.Bytes()
}

func sum(f file) string { return fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(f.data)), f.name) }

func TestReadRefusesBadArchives(t *testing.T) {
	good := archive(t)
	m, s := file{"meta.json", "{}\n"}, file{"state.bin", "state"}
	sums := func(lines ...string) file { return file{"SHA256SUMS", strings.Join(lines, "")} }
	flip := strings.Replace(sum(s), sum(s)[:2], "zz", 1)
	other := sum(file{"state.bin", "other"})
	const failed = "failed to read snapshot file: "
	const integrity = failed + "failed checking integrity of snapshot: "
	tests := []struct {
		name string
		in   []byte
		want string // beginning of the error's text; empty for none
	}{
		{"sound", pack([]file{m, s, sums(sum(m), sum(s))}, nil), ""},
		{"sums in another order", pack([]file{sums(sum(s), sum(m)), s, m}, nil), ""},
		{"empty", nil, "failed to decompress snapshot: "},
		{"not gzip", []byte("junk-junk-junk"), "failed to decompress snapshot: "},
		{"cut", good[:len(good)/2], failed},
		{"cut in the checksum of gzip", good[:len(good)-2], failed + "failed reading snapshot: unexpected EOF"},
		{"extra member", pack([]file{m, s, {"x", ""}}, nil), failed + `unexpected file "x" in snapshot`},
		{"member twice", pack([]file{m, m}, nil), failed + `unexpected second file "meta.json" in snapshot`},
		{"wrong sum", pack([]file{m, s, sums(sum(m), other)}, nil), integrity + `hash check failed for "state.bin"`},
		{"no sum", pack([]file{m, s, sums(sum(s))}, nil), integrity + `file missing for "meta.json"`},
		{"no sums", pack([]file{m, s}, nil), integrity + `file missing for "meta.json"`},
		{"unknown sum", pack([]file{m, s, sums(sum(m), sum(s), sum(file{"x", ""}))}, nil), integrity + `list missing hash for "x"`},
		{"not hexadecimal", pack([]file{m, s, sums(sum(m), flip)}, nil), integrity},
		{"no state", pack([]file{m, sums(sum(m), sum(file{"state.bin", ""}))}, nil), integrity},
		{"bytes after the end", pack([]file{m, s, sums(sum(m), sum(s))}, make([]byte, 512)), "512 unread uncompressed bytes remain"},
		{"bad metadata", pack([]file{{"meta.json", "[]"}}, nil), failed + "failed to decode snapshot metadata: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := snapshot.Verify(bytes.NewReader(tt.in))
			if (err == nil) != (tt.want == "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzRead checks that whatever is read without an error has the state that its checksum says.
func FuzzRead(f *testing.F) {
	f.Add(archive(f))
	m, s := file{"meta.json", "{}\n"}, file{"state.bin", "state"}
	f.Add(pack([]file{m, s, {"SHA256SUMS", sum(m) + sum(s)}}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got bytes.Buffer
		m, err := snapshot.Read(bytes.NewReader(data), &got)
		if (err == nil) != (m != nil) {
			t.Fatalf("metadata %v with error %v", m, err)
		}
		if err != nil {
			return
		}
		m.Size = int64(got.Len())
		var again bytes.Buffer
		if err := snapshot.Write(&again, m, &got, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := snapshot.Verify(&again); err != nil {
			t.Fatal(err)
		}
	})
}
