package snapshotcmd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/command"
	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/server/snapshot"
)

// made writes a snapshot with some keys, as an archive and as a server keeps it, and returns both files.
func made(t *testing.T) (archive, own string) {
	t.Helper()
	store := state.New()
	tx := store.Write(7)
	for _, key := range []string{"a/b/1", "a/b/2", "a/c", "d"} {
		tx.SetKey(kv.Entry{Key: key, Value: []byte("v")})
	}
	tx.Commit()
	var data bytes.Buffer
	if err := store.View().Dump(&data); err != nil {
		t.Fatal(err)
	}
	meta := &raft.SnapshotMeta{Version: 1, ID: "2-7-1", Index: 7, Term: 2, Size: int64(data.Len())}
	dir := t.TempDir()
	archive, own = filepath.Join(dir, "x.snap"), filepath.Join(dir, "state.bin")
	var out bytes.Buffer
	if err := snapshot.Write(&out, meta, bytes.NewReader(data.Bytes()), time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	metaJSON, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{archive: out.Bytes(), own: data.Bytes(), filepath.Join(dir, "meta.json"): metaJSON} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return archive, own
}

func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = command.Run(t.Context(), append([]string{"snapshot"}, args...), verb.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

func TestVerifyReadsEveryRecord(t *testing.T) {
	archive, own := made(t)
	for _, file := range []string{archive, own} {
		code, out, errs := run(t, "verify", file)
		if code != 0 || !strings.HasPrefix(out, "Verified snapshot to index 7: ") || errs != "" {
			t.Errorf("%s: %d, %q, %q", file, code, out, errs)
		}
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		damaged := filepath.Join(t.TempDir(), filepath.Base(file))
		if err := os.WriteFile(filepath.Join(filepath.Dir(damaged), "meta.json"), []byte(`{"Index":7}`), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, bad := range [][]byte{nil, whole[:len(whole)-1], whole[:len(whole)/2], append(bytes.Clone(whole[:len(whole)/2]), whole[len(whole)/2+1:]...)} {
			if err := os.WriteFile(damaged, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if code, out, errs := run(t, "verify", damaged); code != 1 || out != "" || !strings.HasPrefix(errs, "Error reading snapshot: ") {
				t.Errorf("%d of %d bytes of %s: %d, %q, %q", len(bad), len(whole), file, code, out, errs)
			}
		}
	}
	if code, _, errs := run(t, "verify", filepath.Join(t.TempDir(), "none")); code != 1 || !strings.HasPrefix(errs, "Error opening snapshot file: ") {
		t.Errorf("%d, %q", code, errs)
	}
	if code, _, errs := run(t, "verify"); code != 1 || errs != "Missing FILE argument\n" {
		t.Errorf("%d, %q", code, errs)
	}
}

func TestDecodePrintsEveryRecord(t *testing.T) {
	archive, own := made(t)
	_, want, _ := run(t, "decode", archive)
	if _, got, errs := run(t, "decode", own); got != want || errs != "" {
		t.Errorf("%q, %q, want as from the archive", got, errs)
	}
	keys := 0
	for i, text := range strings.Split(strings.TrimSpace(want), "\n") {
		var l struct {
			Data map[string]any
			Type string
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		switch {
		case i == 0 && (l.Type != "SnapshotHeader" || l.Data["LastIndex"] != 7.0):
			t.Errorf("first line %q", text)
		case l.Type == "KVS":
			keys++
			if !strings.Contains("a/b/1 a/b/2 a/c d", fmt.Sprint(l.Data["Key"])) || l.Data["Value"] != "dg==" {
				t.Errorf("%q", text)
			}
		}
	}
	if keys != 4 {
		t.Errorf("%d keys in %q", keys, want)
	}
}

func TestInspectCountsKeysByPrefix(t *testing.T) {
	archive, own := made(t)
	for _, file := range []string{archive, own} {
		for args, want := range map[string]map[string]int{
			"-kvdetails":                         {"a/b": 2, "a/c": 1, "d": 1},
			"-kvdetails -kvdepth=1":              {"a": 3, "d": 1},
			"-kvdetails -kvdepth=3":              {"a/b/1": 1, "a/b/2": 1, "a/c": 1, "d": 1},
			"-kvdetails -kvdepth=2 -kvfilter=a/": {"a/b": 2, "a/c": 1},
			"-kvdepth=1":                         {},
		} {
			code, out, errs := run(t, append(append([]string{"inspect", "-format=json"}, strings.Fields(args)...), file)...)
			var report struct {
				Meta    struct{ ID string }
				StatsKV []struct {
					Name       string
					Sum, Count int
				}
				TotalSizeKV, TotalSize int
			}
			if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 || report.Meta.ID != "2-7-1" || report.TotalSize == 0 {
				t.Errorf("%s: %d, %q, %q, %v", args, code, out, errs, err)
			}
			got, sum := map[string]int{}, 0
			for _, s := range report.StatsKV {
				got[s.Name] = s.Count
				sum += s.Sum
			}
			if fmt.Sprint(got) != fmt.Sprint(want) || sum != report.TotalSizeKV {
				t.Errorf("%s: %v of %d bytes, want %v of %d", args, got, sum, want, report.TotalSizeKV)
			}
		}
	}
	if code, _, errs := run(t, "inspect", "-format=xml", archive); code != 1 || !strings.Contains(errs, "Unknown format: xml") {
		t.Errorf("%d, %q", code, errs)
	}
}
