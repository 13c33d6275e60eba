package state

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/sarnmesh/sarn/internal/mvcc"
)

// A snapshot is a header line, one frame per object, and an end frame. A frame is the kind, version and length of its
// data as unsigned varints, then the data. The end frame has kind 0; its data is the number of frames before it and
// the CRC-32C of every byte before it, so that a cut or damaged stream is noticed.
const (
	snapshotHeader  = "sarn state 1\n"
	snapshotVersion = 1
	maxRecord       = 1 << 30
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errCut reports a snapshot that ends early.
var errCut = errors.New("state snapshot is cut short")

// Dump writes the whole state as v sees it. Writes go on meanwhile.
func (v *View) Dump(w io.Writer) error {
	sum := crc32.New(castagnoli)
	buf := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	buf.WriteString(snapshotHeader) // a failed write fails Flush
	var count uint64
	var head []byte
	for _, s := range subjects() {
		if s.dump == nil {
			continue
		}
		err := s.dump(v, func(data []byte) error {
			count++
			head = binary.AppendUvarint(head[:0], s.kind)
			head = binary.AppendUvarint(head, snapshotVersion)
			head = binary.AppendUvarint(head, uint64(len(data)))
			buf.Write(head)
			_, err := buf.Write(data)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	end := binary.AppendUvarint(nil, count)
	end = binary.BigEndian.AppendUint32(end, sum.Sum32())
	head = append(binary.AppendUvarint(append(head[:0], 0), snapshotVersion), byte(len(end)))
	_, err := w.Write(append(head, end...))
	return err
}

// Restore replaces the whole state by what Dump wrote. Reads that were blocked return; views opened before keep what
// they see. A stream that is cut short or damaged changes nothing. No write transaction may be open.
func (s *Store) Restore(r io.Reader) error {
	fresh := &data{db: mvcc.NewDB(tables()...), replaced: make(chan struct{})}
	if err := fresh.load(r); err != nil {
		return err
	}
	old := s.data.Swap(fresh)
	s.aclVersion.Add(1)
	close(old.replaced)
	return nil
}

func (d *data) load(r io.Reader) (err error) {
	t := &Tx{View: View{d.db.Load(), d.replaced}}
	defer t.Abort()
	// A record that decodes but breaks a rule of its table must not stop a server.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("state snapshot: %v", p)
		}
	}()
	if err := readFrames(r, func(s *subject, version uint64, data []byte) error {
		return s.load(t, version, data)
	}); err != nil {
		return err
	}
	for _, s := range subjects() {
		if s.fill != nil {
			s.fill(t)
		}
	}
	t.Commit()
	return nil
}

// Records calls f for each record of a snapshot, with the name of its table and its encoded object, which f may not
// keep. It fails at the end when the snapshot turns out damaged.
func Records(r io.Reader, f func(table string, data []byte) error) error {
	return readFrames(r, func(s *subject, _ uint64, data []byte) error { return f(s.name, data) })
}

func readFrames(r io.Reader, f func(s *subject, version uint64, data []byte) error) (err error) {
	byKind := map[uint64]*subject{}
	for _, s := range subjects() {
		if s.load != nil {
			byKind[s.kind] = &s
		}
	}
	in := &summer{in: bufio.NewReaderSize(r, 64<<10)}
	header := make([]byte, len(snapshotHeader))
	if _, err := io.ReadFull(in, header); err != nil {
		return cut(err)
	}
	if string(header) != snapshotHeader {
		return errors.New("not a state snapshot of a known version")
	}
	var buf bytes.Buffer
	for count := uint64(0); ; count++ {
		sum := in.sum
		var frame [3]uint64
		for i := range frame {
			if frame[i], err = binary.ReadUvarint(in); err != nil {
				return cut(err)
			}
		}
		kind, version, size := frame[0], frame[1], frame[2]
		if size > maxRecord {
			return fmt.Errorf("state snapshot: record of %d bytes is too large", size)
		}
		buf.Reset()
		// Copied piecewise: a damaged length does not make a huge allocation.
		if _, err := io.CopyN(&buf, in, int64(size)); err != nil {
			return cut(err)
		}
		if kind == 0 {
			want, n := binary.Uvarint(buf.Bytes())
			if n <= 0 || version != snapshotVersion || buf.Len() != n+4 || want != count || binary.BigEndian.Uint32(buf.Bytes()[n:]) != sum {
				return errors.New("state snapshot is damaged: checksum does not match")
			}
			if _, err := in.ReadByte(); err != io.EOF {
				return errors.New("state snapshot is damaged: more follows its end")
			}
			return nil
		}
		s, ok := byKind[kind]
		if !ok {
			return fmt.Errorf("state snapshot: records of kind %d are not known to this server", kind)
		}
		if err := f(s, version, buf.Bytes()); err != nil {
			return fmt.Errorf("state snapshot: %w", err)
		}
	}
}

func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errCut
	}
	return fmt.Errorf("read state snapshot: %w", err)
}

// A summer keeps the checksum of what was read through it.
type summer struct {
	in  *bufio.Reader
	sum uint32
}

func (s *summer) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	s.sum = crc32.Update(s.sum, castagnoli, p[:n])
	return n, err
}

func (s *summer) ReadByte() (byte, error) {
	b, err := s.in.ReadByte()
	if err == nil {
		s.sum = crc32.Update(s.sum, castagnoli, []byte{b})
	}
	return b, err
}
