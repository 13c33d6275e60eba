// Package edit changes headers as the configuration of filters says.
package edit

import (
	"fmt"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A List is edits that are ready to be applied. It is safe for concurrent use.
type List []edit

type edit struct {
	conf   model.HeaderEdit
	format *accesslog.Format // nil: the value as it stands
}

// Compile prepares edits.
func Compile(conf []model.HeaderEdit) (List, error) {
	var l List
	for _, c := range conf {
		e := edit{conf: c}
		if !c.Remove {
			f, err := accesslog.ParseFormat(c.Value)
			if err != nil {
				return nil, fmt.Errorf("header %q: %w", c.Name, err)
			}
			e.format = f
		}
		l = append(l, e)
	}
	return l, nil
}

// Apply edits a header in order.
func (l List) Apply(h *message.Header, e *accesslog.Entry) {
	for i := range l {
		d := &l[i]
		name := d.conf.Name
		if d.conf.Remove {
			h.Del(name)
			continue
		}
		value := string(d.format.Append(nil, e))
		if value == "" && !d.conf.KeepEmpty {
			continue
		}
		switch d.conf.Action {
		case model.AddIfAbsent:
			if !h.Has(name) {
				h.Add(name, value)
			}
		case model.OverwriteOrAdd:
			h.Set(name, value)
		case model.OverwriteIfExists:
			if h.Has(name) {
				h.Set(name, value)
			}
		default:
			h.Add(name, value)
		}
	}
}
