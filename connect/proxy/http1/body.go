package http1

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"

	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// Errors of bodies that are not as long as their head said.
var (
	errTooLong    = errors.New("body is longer than it was said to be")
	errTooShort   = errors.New("body is shorter than it was said to be")
	errUnsendable = errors.New("a field can't be sent over HTTP/1")
)

const (
	// maxChunkLine bounds the line that begins a chunk, extensions included.
	maxChunkLine = 1 << 10
	// Chunks may cost chunkCost bytes each and as much again as twice what they carry; maxExcess bounds what goes
	// beyond.
	chunkCost = 16
	maxExcess = 16 << 10
)

// A chunkState is what comes next in a chunked body.
type chunkState uint8

const (
	chunkLine    chunkState = iota // the line with the size
	chunkData                      // what is left of a chunk
	chunkEnd                       // the line end after a chunk
	chunkTrailer                   // trailers, or the line end after the last chunk
)

// An incoming is what remains to be received of the body of a message.
type incoming struct {
	framing framing
	left    int64 // of byLength, or of a chunk
	state   chunkState
	excess  int64 // what chunks have cost
	scanned int   // bytes without a line end at the start of what waits
	ended   atomic.Bool
	count   atomic.Uint64 // bytes of the body

	keep       bool // trailers
	maxTrailer int  // bytes
	parser     parser
	trailer    message.Header
	arena      message.Arena // of trailers
}

// begin prepares for a body behind what was used of the input.
func (d *incoming) begin(in *input, f framing, length int64) {
	d.framing, d.left, d.state, d.excess, d.scanned = f, length, chunkLine, 0, 0
	d.ended.Store(f == noBody || f == byLength && length == 0)
	d.count.Store(0)
	d.trailer.Reset()
	d.arena.Reset()
	in.want, in.low = large, in.r
}

// read returns the next piece of the body. A bad body is a *BadRequest, one that broke off io.ErrUnexpectedEOF.
func (d *incoming) read(in *input) ([]byte, error) {
	if d.ended.Load() {
		return nil, io.EOF
	}
	for {
		p, err := d.next(in)
		if len(p) > 0 || err != nil {
			d.count.Add(uint64(len(p)))
			return p, err
		}
		if err := in.more(); err != nil {
			if !errors.Is(err, io.EOF) {
				return nil, err
			}
			if d.framing == byClosing || d.framing == tunnel {
				d.ended.Store(true)
				return nil, io.EOF
			}
			return nil, io.ErrUnexpectedEOF
		}
	}
}

// next returns what can be had from bytes that were received: nothing and no error if that is nothing.
func (d *incoming) next(in *input) ([]byte, error) {
	if d.framing != byChunks {
		p := in.bytes()
		if d.framing == byLength {
			p = p[:min(int64(len(p)), d.left)]
			d.left -= int64(len(p))
		}
		in.r += len(p)
		if d.framing == byLength && d.left == 0 {
			d.ended.Store(true)
			return p, io.EOF
		}
		return p, nil
	}
	var piece []byte
	for {
		b := in.bytes()
		switch d.state {
		case chunkData:
			if piece != nil || len(b) == 0 {
				return piece, nil
			}
			piece = b[:min(int64(len(b)), d.left)]
			d.left -= int64(len(piece))
			in.r += len(piece)
			if d.left > 0 {
				return piece, nil
			}
			d.state = chunkEnd
		case chunkEnd:
			if len(b) < 2 {
				return piece, nil
			}
			if b[0] != '\r' || b[1] != '\n' {
				return nil, errChunk
			}
			in.r += 2
			d.state = chunkLine
		case chunkLine:
			end := bytes.IndexByte(b[d.scanned:], '\n')
			if end < 0 {
				if d.scanned = len(b); d.scanned > maxChunkLine {
					return nil, errChunk
				}
				return piece, nil
			}
			end += d.scanned
			d.scanned = 0
			size, ok := chunkSize(b[:end])
			if !ok || end > maxChunkLine {
				return nil, errChunk
			}
			if d.excess = max(0, d.excess+int64(end)-chunkCost-2*size); d.excess > maxExcess {
				return nil, errChunk
			}
			in.r += end + 1
			d.left, d.state = size, chunkData
			if size == 0 {
				d.state = chunkTrailer
				d.parser.reset(&d.trailer, &d.arena, 0)
			}
		case chunkTrailer:
			done, err := d.readTrailer(b)
			if err != nil {
				return nil, err
			}
			if !done {
				return piece, nil
			}
			in.r += d.parser.pos
			d.ended.Store(true)
			return piece, io.EOF
		}
	}
}

// readTrailer reads trailers, which begin b. They are few and rare, so they are read only once they are complete.
func (d *incoming) readTrailer(b []byte) (done bool, err error) {
	if len(b) < 2 {
		return false, nil
	}
	if b[0] == '\r' && b[1] == '\n' {
		d.parser.pos = 2
		return true, nil
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end > d.maxTrailer || end < 0 && len(b) > d.maxTrailer {
		return false, errTooLarge
	}
	if end < 0 {
		return false, nil
	}
	block := b[:end+4]
	if d.keep {
		// The input's buffer is used again before the stream ends.
		block = append(d.arena.Begin(), block...)
		d.arena.End(block)
	}
	done, bad := d.parser.fields(block)
	if bad != nil {
		return false, bad
	}
	if !done || d.parser.pos != len(block) {
		return false, errChunk
	}
	d.parser.finish()
	d.trailer.Del("content-length")
	d.trailer.Del("te")
	d.trailer.Del("trailer")
	if !d.keep {
		d.trailer.Reset()
	}
	return true, nil
}

// ready reports whether read would return without waiting.
func (d *incoming) ready(in *input) bool {
	if d.ended.Load() {
		return true
	}
	b := in.bytes()
	if d.framing != byChunks {
		return len(b) > 0
	}
	switch d.state {
	case chunkEnd:
		if len(b) < 2 {
			return false
		}
		b = b[2:]
	case chunkData:
		return len(b) > 0
	case chunkTrailer:
		return bytes.HasPrefix(b, []byte("\r\n")) || bytes.Contains(b, []byte("\r\n\r\n"))
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return false
	}
	size, ok := chunkSize(b[:end])
	if !ok {
		return true // which is an error
	}
	b = b[end+1:]
	if size == 0 {
		return bytes.HasPrefix(b, []byte("\r\n")) || bytes.Contains(b, []byte("\r\n\r\n"))
	}
	return len(b) > 0
}

// chunkSize reads the line that begins a chunk, without its line feed.
func chunkSize(line []byte) (int64, bool) {
	if len(line) < 2 || line[len(line)-1] != '\r' {
		return 0, false
	}
	line = line[:len(line)-1]
	var n int64
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		case c == ';' && i > 0:
			return n, isValue(text(line[i:]))
		default:
			return 0, false
		}
		if n >= 1<<58 || i >= 16 {
			return 0, false
		}
		n = n<<4 | int64(c)
	}
	return n, true
}

// trailers returns the trailers that were received; nil if there were none.
func (d *incoming) trailers() *message.Header {
	if d.trailer.Len() == 0 {
		return nil
	}
	return &d.trailer
}
