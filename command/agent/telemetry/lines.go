package telemetry

import (
	"context"
	"net"
	"strconv"
	"strings"
	"time"
)

// maxDatagram is how many bytes of lines go into one datagram: what Ethernet carries in one piece.
const maxDatagram = 1400

// lines sends metrics as lines of text.
type lines struct {
	target *Target
	dial   Dial
	conn   net.Conn
}

func newLines(t *Target, dial Dial) *lines { return &lines{target: t, dial: dial} }

// shown is the address as the log has it.
func (t *Target) shown() string {
	if t.OTLP != nil {
		return t.OTLP.shown()
	}
	return t.Address
}

func (l *lines) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// send writes the lines of an interval. A connection that failed is made anew with the next, and so is one of datagrams,
// now and then, since the address of its name may change.
func (l *lines) send(ctx context.Context, _ time.Time, points []point) error {
	network, address := l.target.network()
	if network != "tcp" {
		l.close()
	}
	if l.conn == nil {
		c, err := l.dial(ctx, network, address)
		if err != nil {
			return err
		}
		l.conn = c
	}
	if t, ok := ctx.Deadline(); ok {
		l.conn.SetDeadline(t)
	}
	full := maxDatagram
	if network == "tcp" {
		full = 32 << 10
	}
	b := make([]byte, 0, full+512)
	written := false
	flush := func(upTo int) error {
		if upTo == 0 {
			return nil
		}
		n, err := l.conn.Write(b[:upTo])
		b = append(b[:0], b[upTo:]...)
		written = written || n > 0
		if err != nil && written {
			return lostError{err}
		}
		return err
	}
	for i := range points {
		for j := range rows(&points[i]) {
			before := len(b)
			b = l.row(b, &points[i], j)
			if len(b) > full {
				if err := flush(before); err != nil {
					l.close()
					return err
				}
			}
		}
	}
	if err := flush(len(b)); err != nil {
		l.close()
		return err
	}
	return nil
}

// rows is how many lines a point takes.
func rows(p *point) int {
	if p.kind == summary {
		return len(p.batch.Values)
	}
	return 1
}

// row writes a line of a point: its value, what was counted, or one of its samples with the rate that these were chosen
// by.
func (l *lines) row(b []byte, p *point, i int) []byte {
	name := p.name
	dog := l.target.Protocol == Dogstatsd
	if dog && l.target.Host != "" {
		name = strings.Replace(name, "."+l.target.Host+".", ".", 1)
	}
	b = append(b, name...)
	if !dog {
		for _, label := range p.labels {
			b = appendWord(append(b, '.'), label.Value)
		}
	}
	b = append(b, ':')
	switch p.kind {
	case gauge:
		b = append(appendNumber(b, p.value), "|g"...)
	case counter:
		b = append(appendNumber(b, p.batch.Sum), "|c"...)
	case summary:
		b = append(appendNumber(b, float64(p.batch.Values[i])), "|ms"...)
		if n := int64(len(p.batch.Values)); n < p.batch.Count {
			b = strconv.AppendFloat(append(b, "|@"...), float64(n)/float64(p.batch.Count), 'g', 6, 64)
		}
	}
	if dog && len(l.target.Tags)+len(p.labels) > 0 {
		b = append(b, "|#"...)
		for _, t := range l.target.Tags {
			b = append(appendTag(b, t), ',')
		}
		for _, label := range p.labels {
			b = append(appendTag(append(appendTag(b, label.Name), ':'), label.Value), ',')
		}
		b = b[:len(b)-1]
	}
	return append(b, '\n')
}

func appendNumber(b []byte, v float64) []byte { return strconv.AppendFloat(b, v, 'f', -1, 64) }

// appendWord writes a part of a name.
func appendWord(b []byte, s string) []byte {
	for i := range len(s) {
		b = append(b, nameByte(s[i]))
	}
	return b
}

// appendTag writes a tag, or the name or value of one.
func appendTag(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; c {
		case '|', ',', '\n', '\r', '#':
			b = append(b, '_')
		default:
			b = append(b, c)
		}
	}
	return b
}
