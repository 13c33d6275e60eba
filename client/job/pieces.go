package job

import (
	"sync"
	"time"
)

// pieces collects output and gives it on in pieces: when there is enough, or after a while. A program that writes more
// than can be sent waits.
type pieces struct {
	wait time.Duration // between signs of life while there is no output; 0 for none

	mu     sync.Mutex
	moved  sync.Cond // something was taken or the output was closed
	text   []byte
	ended  bool
	gone   bool          // nobody takes any more
	filled chan struct{} // has a token while there is a whole piece, or the end
}

// held is how much may wait to be sent.
const held = 16 * pieceSize

func newPieces(wait time.Duration) *pieces {
	p := &pieces{wait: wait, filled: make(chan struct{}, 1)}
	p.moved.L = &p.mu
	return p
}

// Write implements io.Writer.
func (p *pieces) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.text) >= held && !p.gone && !p.ended {
		p.moved.Wait()
	}
	if !p.gone { // else what is written goes nowhere; the program goes on
		p.text = append(p.text, b...)
	}
	if len(p.text) >= pieceSize {
		p.signal()
	}
	return len(b), nil
}

func (p *pieces) signal() {
	select {
	case p.filled <- struct{}{}:
	default:
	}
}

// close tells that there is no more output.
func (p *pieces) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.moved.Broadcast()
	p.signal()
}

// take removes a piece of what there is; more tells that there is another whole piece, or all that was left.
func (p *pieces) take() (piece string, more, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.text), pieceSize)
	piece = string(p.text[:n])
	p.text = append(p.text[:0], p.text[n:]...)
	p.moved.Broadcast()
	return piece, len(p.text) >= pieceSize || p.ended && len(p.text) > 0, p.ended
}

// send gives on all pieces in order until the output is closed, or one cannot be given on.
func (p *pieces) send(give func(number int, text string) error) error {
	tick := time.NewTicker(pieceTime)
	defer tick.Stop()
	last, number := time.Now(), 0
	for {
		select {
		case <-p.filled:
		case <-tick.C:
		}
		for {
			text, more, ended := p.take()
			if text != "" || p.wait > 0 && time.Since(last) >= p.wait && !ended {
				if err := give(number, text); err != nil {
					p.abandon()
					return err
				}
				number++
				last = time.Now()
			}
			if ended && !more {
				return nil
			}
			if !more {
				break
			}
		}
	}
}

// abandon drops what there is and what comes.
func (p *pieces) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone, p.text = true, nil
	p.moved.Broadcast()
}
