// Package snapshot reads and writes snapshot archives: what the snapshot endpoints and commands exchange. An archive is
// a gzip compressed tar file with the metadata, the state and the checksums of both (spec/state.md section 10). The
// form of the state is no matter of this package.
package snapshot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// The members of an archive, in their order.
const (
	metaFile  = "meta.json"
	stateFile = "state.bin"
	sumsFile  = "SHA256SUMS"
)

// maxSmall bounds the members other than the state.
const maxSmall = 1 << 20

// Write writes an archive of the state, which is meta.Size bytes long. Modified is the time that the members carry.
func Write(w io.Writer, meta *raft.SnapshotMeta, state io.Reader, modified time.Time) error {
	metaJSON, err := json.Marshal(meta)
	if err != nil {
		return fmt.Errorf("encode snapshot metadata: %w", err)
	}
	metaJSON = append(metaJSON, '\n')
	compressed := gzip.NewWriter(w)
	archive := tar.NewWriter(compressed)
	member := func(name string, size int64, content io.Reader) error {
		h := &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: modified}
		if err := archive.WriteHeader(h); err != nil {
			return fmt.Errorf("write header of %s: %w", name, err)
		}
		if n, err := io.Copy(archive, content); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		} else if n != size {
			return fmt.Errorf("write %s: %d bytes instead of %d", name, n, size)
		}
		return nil
	}
	metaSum, stateSum := sha256.Sum256(metaJSON), sha256.New()
	if err := member(metaFile, int64(len(metaJSON)), bytes.NewReader(metaJSON)); err != nil {
		return err
	}
	if err := member(stateFile, meta.Size, io.TeeReader(state, stateSum)); err != nil {
		return err
	}
	sums := fmt.Sprintf("%x  %s\n%x  %s\n", metaSum, metaFile, stateSum.Sum(nil), stateFile)
	if err := member(sumsFile, int64(len(sums)), strings.NewReader(sums)); err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("finish archive: %w", err)
	}
	if err := compressed.Close(); err != nil {
		return fmt.Errorf("finish compression: %w", err)
	}
	return nil
}

// Read copies the state of an archive to the writer and returns the metadata. Only when the error is nil has the state
// been verified; until then it must not be used. The texts of errors are those of spec/state.md section 10.
func Read(r io.Reader, state io.Writer) (*raft.SnapshotMeta, error) {
	in, err := gzip.NewReader(bufio.NewReader(r))
	if err != nil {
		return nil, fmt.Errorf("failed to decompress snapshot: %w", err)
	}
	defer in.Close()
	meta, err := readArchive(in, state)
	if err != nil {
		return nil, fmt.Errorf("failed to read snapshot file: %w", err)
	}
	// The end of the tar file has to be the end of the stream, whose own checksum is looked at there.
	if n, err := io.Copy(io.Discard, in); err != nil {
		return nil, fmt.Errorf("failed to read snapshot file: failed reading snapshot: %w", err)
	} else if n > 0 {
		return nil, fmt.Errorf("%d unread uncompressed bytes remain", n)
	}
	return meta, nil
}

// Verify reads an archive and returns its metadata if it is sound.
func Verify(r io.Reader) (*raft.SnapshotMeta, error) { return Read(r, io.Discard) }

func readArchive(r io.Reader, state io.Writer) (*raft.SnapshotMeta, error) {
	archive := tar.NewReader(r)
	var meta *raft.SnapshotMeta
	var sums []byte
	hashes := map[string]hash.Hash{metaFile: sha256.New(), stateFile: sha256.New()}
	seen := map[string]bool{}
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("failed reading snapshot: %w", err)
		}
		if seen[h.Name] {
			return nil, fmt.Errorf("unexpected second file %q in snapshot", h.Name)
		}
		seen[h.Name] = true
		switch h.Name {
		case metaFile:
			data, err := readSmall(io.TeeReader(archive, hashes[metaFile]))
			if err != nil {
				return nil, fmt.Errorf("failed to read snapshot metadata: %w", err)
			}
			meta = &raft.SnapshotMeta{}
			if err := json.Unmarshal(data, meta); err != nil {
				return nil, fmt.Errorf("failed to decode snapshot metadata: %w", err)
			}
		case stateFile:
			if _, err := io.Copy(io.MultiWriter(state, hashes[stateFile]), archive); err != nil {
				return nil, fmt.Errorf("failed to read or write snapshot data: %w", err)
			}
		case sumsFile:
			if sums, err = readSmall(archive); err != nil {
				return nil, fmt.Errorf("failed to read snapshot hashes: %w", err)
			}
		default:
			return nil, fmt.Errorf("unexpected file %q in snapshot", h.Name)
		}
	}
	if err := checkSums(sums, hashes); err != nil {
		return nil, fmt.Errorf("failed checking integrity of snapshot: %w", err)
	}
	if meta == nil || !seen[stateFile] {
		// The checksum of a member that is not there can match, namely that of nothing.
		return nil, fmt.Errorf("failed checking integrity of snapshot: %s or %s is missing", metaFile, stateFile)
	}
	return meta, nil
}

func readSmall(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSmall+1))
	if err == nil && len(data) > maxSmall {
		err = fmt.Errorf("longer than %d bytes", maxSmall)
	}
	return data, err
}

// checkSums holds the lines of the checksum file against what was read.
func checkSums(sums []byte, hashes map[string]hash.Hash) error {
	listed := map[string]bool{}
	for line := range strings.Lines(string(sums)) {
		sum, name, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "  ")
		if !ok {
			return fmt.Errorf("bad line in %s", sumsFile)
		}
		want, err := hex.DecodeString(sum)
		if err != nil {
			return fmt.Errorf("bad hash for %q", name)
		}
		h, ok := hashes[name]
		if !ok {
			return fmt.Errorf("list missing hash for %q", name)
		}
		if subtle.ConstantTimeCompare(h.Sum(nil), want) != 1 {
			return fmt.Errorf("hash check failed for %q", name)
		}
		listed[name] = true
	}
	for _, name := range []string{metaFile, stateFile} {
		if !listed[name] {
			return fmt.Errorf("file missing for %q", name)
		}
	}
	return nil
}
