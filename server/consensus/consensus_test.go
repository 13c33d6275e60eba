package consensus_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/server/consensus"
)

func open(t *testing.T, dir string) *consensus.Storage {
	t.Helper()
	s, err := consensus.Disk(consensus.DiskConfig{Dir: dir, SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDiskKeepsWhatWasStored(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	s := open(t, dir)
	var logs []*raft.Log
	for i := range 100 {
		logs = append(logs, &raft.Log{Index: uint64(i + 1), Term: 1, Data: make([]byte, 50_000)}) // several segments
	}
	for _, l := range logs {
		if err := s.Logs.StoreLog(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Stable.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	if last, err := s.Logs.LastIndex(); last != 100 || err != nil {
		t.Errorf("last index %d, %v", last, err)
	}
	if term, err := s.Stable.GetUint64([]byte("CurrentTerm")); term != 7 || err != nil {
		t.Errorf("term %d, %v", term, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v; want it closed to others", info.Mode(), err)
	}
}

func TestDiskTellsWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "raft")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := consensus.Disk(consensus.DiskConfig{Dir: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in the place of the folder: %v, want an error that names it", err)
	}
	dir := filepath.Join(t.TempDir(), "raft")
	open(t, dir).Close()
	meta := filepath.Join(dir, "wal", "wal-meta.db")
	if err := os.WriteFile(meta, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := consensus.Disk(consensus.DiskConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("damaged metadata: %v, want an error that names the folder", err)
	}
}

func TestDiskInUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	first := open(t, dir)
	if _, err := consensus.Disk(consensus.DiskConfig{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("a folder in use: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Close(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestNewChecksItsConfiguration(t *testing.T) {
	if _, err := consensus.New(consensus.Config{}); err == nil {
		t.Error("an empty configuration was taken")
	}
}

func TestPeersForRecoveryAreReadOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	s := open(t, dir)
	defer s.Close()
	if servers, err := s.Recovery(); servers != nil || err != nil {
		t.Errorf("without a file: %v, %v", servers, err)
	}
	if info, err := os.ReadFile(filepath.Join(dir, "peers.info")); err != nil || !strings.Contains(string(info), "peers.json") {
		t.Errorf("peers.info: %q, %v", info, err)
	}
	peers := filepath.Join(dir, "peers.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(peers, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`[{"id":"a","address":"10.0.0.1:8300"},{"id":"b","address":"10.0.0.2:8300","non_voter":true}]`)
	servers, err := s.Recovery()
	want := []consensus.Server{{ID: "a", Address: "10.0.0.1:8300", Voter: true}, {ID: "b", Address: "10.0.0.2:8300"}}
	if err != nil || !slices.Equal(servers, want) {
		t.Errorf("%v, %v; want %v", servers, err, want)
	}
	for text, want := range map[string]string{
		`[`:  "unexpected end",
		`[]`: "no server of the list votes",
		`[{"id":"a","address":"x","non_voter":true}]`: "no server of the list votes",
		`[{"id":"a"}]`: "server 1 has no id or no address",
		`[{"id":"a","address":"x"},{"id":"a","address":"y"}]`: `the id "a" is there twice`,
		`[{"id":"a","address":"x"},{"id":"b","address":"x"}]`: `the address "x" is there twice`,
		`["10.0.0.1:8300"]`: "cannot unmarshal",
		strings.Repeat(" ", 2<<20) + `[{"id":"a","address":"x"}]`: "longer than",
	} {
		write(text)
		if _, err := s.Recovery(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), peers) {
			t.Errorf("%.60s: %v, want %q and the file's name", text, err, want)
		}
	}
	if err := s.Recovered(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(peers); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}

func FuzzParsePeers(f *testing.F) {
	f.Add([]byte(`[{"id":"a","address":"10.0.0.1:8300","non_voter":false}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		servers, err := consensus.ParsePeers(data)
		if err == nil && !slices.ContainsFunc(servers, func(s consensus.Server) bool { return s.Voter && s.ID != "" && s.Address != "" }) {
			t.Errorf("%q gives %v", data, servers)
		}
	})
}
