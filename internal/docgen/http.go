package main

import (
	"fmt"
	"go/ast"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A route is one path of the HTTP API.
type route struct {
	path    string
	methods string
	handler string   // name of the function that serves it
	params  []string // query parameters of its own
	blocks  bool     // takes part in blocking queries
	modes   bool     // takes a consistency mode
	selects bool     // takes filter, near and node-meta
}

// routes reads the routes from the tables of the server, and what parameters each takes from the functions that serve it.
func routes(root string) ([]*route, error) {
	files, err := parseFolder(filepath.Join(root, "client/httpapi"))
	if err != nil {
		return nil, err
	}
	f := functions(files)
	var found []*route
	for _, file := range files {
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasSuffix(fn.Name.Name, "Routes") {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				row, ok := n.(*ast.CompositeLit)
				if !ok || len(row.Elts) != 3 || !strings.HasPrefix(literal(row.Elts[0]), "/v1/") {
					return true
				}
				r := &route{path: literal(row.Elts[0]), methods: literal(row.Elts[1])}
				if names := chain(row.Elts[2]); len(names) > 0 {
					r.handler = names[len(names)-1]
				}
				f.fill(r)
				found = append(found, r)
				return false
			})
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no routes found in client/httpapi")
	}
	slices.SortFunc(found, func(a, b *route) int { return strings.Compare(a.path, b.path) })
	return found, nil
}

// A function is what matters here of a function of the server: what it calls and the parameters it names.
type function struct {
	calls, params map[string]bool
}

type functionMap map[string]*function

// lookups are the functions that take the name of a query parameter.
var lookups = map[string]bool{"get": true, "has": true, "lookup": true, "all": true, "requiredParam": true, "uintParam": true, "conflict": true}

// own are the variables whose methods are functions of the server.
var own = map[string]bool{"s": true, "w": true, "rw": true}

func functions(files []*ast.File) functionMap {
	m := functionMap{}
	for _, file := range files {
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			f := m[fn.Name.Name]
			if f == nil {
				f = &function{map[string]bool{}, map[string]bool{}}
				m[fn.Name.Name] = f
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				fun := call.Fun
				if x, ok := fun.(*ast.IndexExpr); ok {
					fun = x.X
				}
				names := chain(fun)
				if len(names) == 0 {
					return true
				}
				name := names[len(names)-1]
				if len(names) == 1 || own[names[0]] {
					f.calls[name] = true
				}
				if !lookups[name] {
					return true
				}
				for _, arg := range call.Args {
					if l, ok := arg.(*ast.BasicLit); ok {
						if s, err := strconv.Unquote(l.Value); err == nil {
							f.params[s] = true
						}
					}
				}
				return true
			})
		}
	}
	return m
}

// shared are parameters that many requests have in common or that have another meaning; the page tells of them once.
var shared = map[string]bool{
	"dc": true, "datacenter": true, "token": true, "pretty": true, "ns": true, "partition": true, "wait": true, "index": true,
	"stale": true, "consistent": true, "max_stale": true, "cached": true, "near": true, "filter": true, "node-meta": true,
	"segment": true, "peer": true, "sg": true, "sameness-group": true, "seperator": true, "datacenter-name": true,
}

// fill finds the parameters of a route in its handler and everything that calls in turn.
func (m functionMap) fill(r *route) {
	seen := map[string]bool{}
	params := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		f := m[name]
		if f == nil || seen[name] || lookups[name] {
			return
		}
		seen[name] = true
		switch name {
		case "writeValue", "writeError", "serve", "newResponse":
			return
		}
		maps.Copy(params, f.params)
		for call := range f.calls {
			visit(call)
		}
	}
	visit(r.handler)
	if strings.Contains(r.methods, "GET") {
		r.blocks, r.modes, r.selects = seen["parseBlocking"] && !still[r.path], seen["parseConsistency"], seen["parseSelection"]
	}
	if params["filter"] && !r.selects {
		r.params = append(r.params, "filter")
	}
	if params["near"] && !r.selects {
		r.params = append(r.params, "near")
	}
	for _, p := range slices.Sorted(maps.Keys(params)) {
		if !shared[p] {
			r.params = append(r.params, p)
		}
	}
}

// httpAPI makes the page of the HTTP API.
func httpAPI(root string) (string, error) {
	all, err := routes(root)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(notice)
	b.WriteString(httpHead)
	group := ""
	for _, r := range all {
		e, ok := endpoints[r.path]
		if !ok {
			return "", fmt.Errorf("the table of endpoints says nothing about %s", r.path)
		}
		if g := strings.Split(r.path, "/")[2]; g != group {
			group = g
			fmt.Fprintf(&b, "\n## %s\n\n| path | methods | what it does | reads | parameters |\n| --- | --- | --- | --- | --- |\n", group)
		}
		var reads []string
		for _, kind := range []struct {
			is   bool
			name string
		}{{r.blocks, "blocks"}, {r.modes, "modes"}, {r.selects, "selects"}} {
			if kind.is {
				reads = append(reads, kind.name)
			}
		}
		var params []string
		for _, p := range r.params {
			params = append(params, code(p))
		}
		path := r.path
		if strings.Contains(path, "*") {
			path = strings.Replace(path, "*", e.argument, 1)
		} else {
			path += e.argument
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", path, strings.ReplaceAll(r.methods, ",", " "), cell(e.does),
			strings.Join(reads, ", "), strings.Join(params, " "))
	}
	return b.String(), nil
}
