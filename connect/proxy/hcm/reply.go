package hcm

import (
	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A replyMapper changes replies of the proxy's own.
type replyMapper struct {
	body    *bodyFormat
	mappers []mapper
}

type mapper struct {
	conf   *model.ReplyMapper
	passes func(*accesslog.Entry) bool
	body   *bodyFormat
	edits  []edit
}

type edit struct {
	model.HeaderEdit
	value *accesslog.Format
}

// A bodyFormat makes a body: text, or JSON.
type bodyFormat struct {
	text        *accesslog.Format
	json        *accesslog.JSON
	contentType string
}

func newBodyFormat(text string, tree any, contentType string) (*bodyFormat, error) {
	b := &bodyFormat{contentType: contentType}
	var err error
	switch {
	case tree != nil:
		if b.contentType == "" {
			b.contentType = "application/json"
		}
		b.json, err = accesslog.CompileJSON(tree, false)
	case text != "":
		if b.contentType == "" {
			b.contentType = "text/plain"
		}
		b.text, err = accesslog.ParseFormat(text)
	default:
		return nil, nil
	}
	return b, err
}

func (b *bodyFormat) render(e *accesslog.Entry) string {
	if b.json != nil {
		return string(append(b.json.Append(nil, e), '\n'))
	}
	return string(b.text.AppendRaw(nil, e))
}

func newReplyMapper(conf *model.LocalReply) (*replyMapper, error) {
	r := &replyMapper{}
	var err error
	if r.body, err = newBodyFormat(conf.Text, conf.JSON, conf.ContentType); err != nil {
		return nil, err
	}
	for i := range conf.Mappers {
		c := &conf.Mappers[i]
		m := mapper{conf: c}
		if m.passes, err = accesslog.CompileFilter(c.Filter); err != nil {
			return nil, err
		}
		if m.body, err = newBodyFormat(c.Text, c.JSON, c.ContentType); err != nil {
			return nil, err
		}
		for _, h := range c.Edits {
			f, err := accesslog.ParseFormat(h.Value)
			if err != nil {
				return nil, err
			}
			m.edits = append(m.edits, edit{h, f})
		}
		r.mappers = append(r.mappers, m)
	}
	return r, nil
}

// apply changes the reply that stands in the exchange's response, and its body.
func (r *replyMapper) apply(e *exchange, body, contentType string) (string, string) {
	entry := &e.entry
	e.http.Response, e.http.Status, e.http.LocalBody = &e.resp, e.resp.Status, body
	format := r.body
	for i := range r.mappers {
		m := &r.mappers[i]
		if !m.passes(entry) {
			continue
		}
		if m.conf.Body != nil {
			body = *m.conf.Body
			e.http.LocalBody = body
		}
		h := &e.resp.Header
		for _, ed := range m.edits {
			v := string(ed.value.AppendRaw(nil, entry))
			switch ed.Action {
			case model.AppendOrAdd:
				h.Add(ed.Name, v)
			case model.AddIfAbsent:
				if !h.Has(ed.Name) {
					h.Add(ed.Name, v)
				}
			case model.OverwriteOrAdd:
				h.Set(ed.Name, v)
			case model.OverwriteIfExists:
				if h.Has(ed.Name) {
					h.Set(ed.Name, v)
				}
			}
		}
		if m.conf.Status != 0 {
			e.resp.Status, e.http.Status = m.conf.Status, m.conf.Status
		}
		if m.body != nil {
			format = m.body
		}
		break
	}
	if format != nil {
		return format.render(entry), format.contentType
	}
	return body, contentType
}
