package route

import (
	"fmt"
	"sync"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Edits are changes of a header, with their operators parsed. The zero Edits change nothing. They are safe for
// concurrent use.
type Edits struct {
	remove []string
	set    []edit
}

type edit struct {
	name      string
	text      string
	format    *accesslog.Format // nil: text as it stands
	action    model.AppendAction
	keepEmpty bool
}

// NewEdits compiles edits.
func NewEdits(list []model.HeaderEdit) (Edits, error) {
	var out Edits
	for i := range list {
		m := &list[i]
		if m.Remove {
			out.remove = append(out.remove, m.Name)
			continue
		}
		f, err := accesslog.ParseFormat(m.Value)
		if err != nil {
			return Edits{}, fmt.Errorf("header %q: %w", m.Name, err)
		}
		e := edit{name: m.Name, action: m.Action, keepEmpty: m.KeepEmpty}
		if text, ok := f.Literal(); ok {
			e.text = text
		} else {
			e.format = f
		}
		out.set = append(out.set, e)
	}
	return out, nil
}

// pending is a change whose value is known.
type pending struct {
	name, value string
	overwrite   bool
}

// scratch holds buffers in which values are made: operators take memory of the arena themselves, so it can't be
// written to meanwhile.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// keepScratch bounds the buffers that are kept.
const keepScratch = 64 << 10

// Apply changes a header. What is made lives in the arena. All values are made of what the header was after the
// removals, so edits of one list don't see each other.
func (ed *Edits) Apply(h *message.Header, a *message.Arena, e *accesslog.Entry) {
	for _, name := range ed.remove {
		h.Del(name)
	}
	if len(ed.set) == 0 {
		return
	}
	var room [8]pending
	list := room[:0]
	for i := range ed.set {
		s := &ed.set[i]
		value := s.text
		if s.format != nil {
			value = render(s.format, a, e)
		}
		if value == "" && !s.keepEmpty {
			continue
		}
		overwrite := false
		switch s.action {
		case model.AddIfAbsent:
			if h.Has(s.name) {
				continue
			}
		case model.OverwriteIfExists:
			if !h.Has(s.name) {
				continue
			}
			overwrite = true
		case model.OverwriteOrAdd:
			overwrite = true
		}
		list = append(list, pending{s.name, value, overwrite})
	}
	for i := range list {
		if p := &list[i]; p.overwrite {
			h.Set(p.name, p.value)
		}
	}
	for i := range list {
		if p := &list[i]; !p.overwrite {
			h.Add(p.name, p.value)
		}
	}
}

// render makes a string of a format.
func render(f *accesslog.Format, a *message.Arena, e *accesslog.Entry) string {
	buf := scratch.Get().(*[]byte)
	b := f.AppendValue((*buf)[:0], e)
	s := a.Bytes(b)
	if cap(b) <= keepScratch {
		*buf = b
	}
	scratch.Put(buf)
	return s
}
