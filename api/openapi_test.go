package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// document is openapi.json.
type document struct{ root map[string]any }

func readDocument(t testing.TB) document {
	t.Helper()
	data, err := files.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(data, &d.root); err != nil {
		t.Fatalf("openapi.json: %v", err)
	}
	return d
}

// resolve follows a $ref, if v is one.
func (d document) resolve(v any) (map[string]any, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%v is not an object", v)
	}
	ref, ok := m["$ref"].(string)
	if !ok {
		return m, nil
	}
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		return nil, fmt.Errorf("$ref %q leads out of the document", ref)
	}
	var at any = d.root
	for part := range strings.SplitSeq(path, "/") {
		in, ok := at.(map[string]any)
		if !ok || in[part] == nil {
			return nil, fmt.Errorf("$ref %q leads nowhere, at %q", ref, part)
		}
		at = in[part]
	}
	return d.resolve(at)
}

// operation finds what the document says of a request, by its path without the
// query. It is nil for what is not documented.
func (d document) operation(method, path string) map[string]any {
	paths := d.root["paths"].(map[string]any)
	if item, ok := paths[path].(map[string]any); ok && !strings.Contains(path, "{") {
		op, _ := item[strings.ToLower(method)].(map[string]any)
		return op
	}
	for pattern, item := range paths {
		if regexp.MustCompile("^"+regexp.MustCompile(`\{\w+\}`).ReplaceAllString(regexp.QuoteMeta(pattern), `[^/]+`)+"$").MatchString(path) ||
			regexp.MustCompile("^"+strings.ReplaceAll(regexp.QuoteMeta(pattern), `\{id\}`, `[^/]+`)+"$").MatchString(path) {
			op, _ := item.(map[string]any)[strings.ToLower(method)].(map[string]any)
			return op
		}
	}
	return nil
}

// check says where v breaks a schema. It knows the words that the document uses.
func (d document) check(schema, v any, at string) []string {
	s, err := d.resolve(schema)
	if err != nil {
		return []string{at + ": " + err.Error()}
	}
	var bad []string
	for _, part := range list(s["allOf"]) {
		bad = append(bad, d.check(part, v, at)...)
	}
	if allowed := list(s["enum"]); allowed != nil && !slices.Contains(allowed, v) {
		bad = append(bad, fmt.Sprintf("%s: %v is not one of %v", at, v, allowed))
	}
	ok := true
	switch s["type"] {
	case "object":
		var m map[string]any
		if m, ok = v.(map[string]any); !ok {
			break
		}
		for _, name := range list(s["required"]) {
			if _, has := m[name.(string)]; !has {
				bad = append(bad, fmt.Sprintf("%s: %s is missing", at, name))
			}
		}
		properties, _ := s["properties"].(map[string]any)
		for name, x := range m {
			if p, known := properties[name]; known {
				bad = append(bad, d.check(p, x, at+"."+name)...)
			} else if p := s["additionalProperties"]; p != nil {
				bad = append(bad, d.check(p, x, at+"."+name)...)
			}
		}
	case "array":
		var all []any
		if all, ok = v.([]any); ok {
			for i, x := range all {
				bad = append(bad, d.check(s["items"], x, fmt.Sprintf("%s[%d]", at, i))...)
			}
		}
	case "string":
		var text string
		if text, ok = v.(string); ok && s["format"] == "date-time" {
			_, err := time.Parse(time.RFC3339Nano, text)
			ok = err == nil
		}
	case "integer":
		var n float64
		n, ok = v.(float64)
		ok = ok && n == float64(int64(n))
	case "number":
		_, ok = v.(float64)
	case "boolean":
		_, ok = v.(bool)
	}
	if !ok {
		bad = append(bad, fmt.Sprintf("%s: %v is not a %v", at, v, s["type"]))
	}
	return bad
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// pages are the routes of the dashboard, which the document leaves out.
var pages = []string{"/", "/app.js", "/dom.js", "/format.js", "/style.css", "/icon.svg"}

func TestOpenAPIListsExactlyTheRoutes(t *testing.T) {
	d := readDocument(t)
	s, err := New(Config{Fleet: newFake(), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	var registered, documented []string
	for _, r := range s.echo.Routes() {
		if r.Method != echo.RouteNotFound && !slices.Contains(pages, r.Path) {
			registered = append(registered, r.Method+" "+regexp.MustCompile(`:(\w+)`).ReplaceAllString(r.Path, "{$1}"))
		}
	}
	ids := make(map[string]bool)
	for path, item := range d.root["paths"].(map[string]any) {
		for method, v := range item.(map[string]any) {
			documented = append(documented, strings.ToUpper(method)+" "+path)
			op := v.(map[string]any)
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] {
				t.Errorf("%s %s: operationId %q is empty or not unique", method, path, id)
			}
			ids[id] = true
			if op["summary"] == "" {
				t.Errorf("%s %s has no summary", method, path)
			}
			good := 0
			for code, r := range op["responses"].(map[string]any) {
				n, err := strconv.Atoi(code)
				if err != nil || n < 200 || n > 599 {
					t.Errorf("%s %s: response %q", method, path, code)
				}
				answer, err := d.resolve(r)
				if err != nil {
					t.Errorf("%s %s: %v", method, path, err)
					continue
				}
				if n < 300 {
					good++
				}
				if answer["description"] == "" || answer["content"] == nil {
					t.Errorf("%s %s: response %s says nothing", method, path, code)
				}
			}
			if good != 1 {
				t.Errorf("%s %s: %d good responses", method, path, good)
			}
			// Each {name} of the path is a parameter, and the other way round.
			var want, got []string
			for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
				want = append(want, m[1])
			}
			for _, p := range list(op["parameters"]) {
				if p, err := d.resolve(p); err != nil {
					t.Error(err)
				} else if p["in"] == "path" {
					got = append(got, p["name"].(string))
				}
			}
			if !slices.Equal(want, got) {
				t.Errorf("%s %s: parameters %v", method, path, got)
			}
		}
	}
	slices.Sort(registered)
	slices.Sort(documented)
	if !slices.Equal(registered, documented) {
		t.Errorf("registered: %s\ndocumented: %s", strings.Join(registered, "\n  "), strings.Join(documented, "\n  "))
	}
}

func TestOpenAPIReferencesResolve(t *testing.T) {
	d := readDocument(t)
	used := make(map[string]bool)
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				used[ref] = true
				if _, err := d.resolve(v); err != nil {
					t.Error(err)
				}
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(d.root)
	for kind, all := range d.root["components"].(map[string]any) {
		for name := range all.(map[string]any) {
			if kind != "securitySchemes" && !used["#/components/"+kind+"/"+name] {
				t.Errorf("nothing refers to %s/%s", kind, name)
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d references were found", len(used))
	}
}

// The document's records have exactly the fields that the types have, and require
// exactly those that are always there.
func TestOpenAPISchemasAreTheTypes(t *testing.T) {
	d := readDocument(t)
	for name, v := range map[string]any{
		"Host": HostView{}, "VM": fleet.VM{}, "Prediction": fleet.Prediction{}, "Contribution": fleet.Contribution{}, "Alternative": fleet.Alternative{},
		"Recommendation": fleet.Recommendation{}, "Execution": fleet.Execution{}, "Step": fleet.Step{}, "GuestReport": fleet.GuestReport{}, "Point": Point{}, "Problem": problem{}, "DeadLetter": DeadLetter{}, "DeadSample": DeadSample{},
		"Model": Model{}, "Comparison": Comparison{}, "Drift": Drift{}, "Outcomes": Outcomes{}, "DriftDistance": DriftDistance{}, "Job": Job{}, "Training": Training{}, "Incident": fleet.Incident{},
		"Policy": PolicyView{}, "RootCause": RootCause{}, "Suspect": Suspect{}, "Evidence": Evidence{}, "Explanation": Explanation{}, "Freeze": fleet.Freeze{}, "Cordon": fleet.Cordon{},
	} {
		var all, always []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			field, option, _ := strings.Cut(f.Tag.Get("json"), ",")
			if field == "" {
				continue // embedded
			}
			all = append(all, field)
			if option == "" {
				always = append(always, field)
			}
		}
		s, err := d.resolve(map[string]any{"$ref": "#/components/schemas/" + name})
		if err != nil {
			t.Error(err)
			continue
		}
		var properties, required []string
		for p := range s["properties"].(map[string]any) {
			properties = append(properties, p)
		}
		for _, p := range list(s["required"]) {
			required = append(required, p.(string))
		}
		for _, l := range [][]string{all, always, properties, required} {
			slices.Sort(l)
		}
		if !slices.Equal(all, properties) {
			t.Errorf("%s has the fields %v, documented are %v", name, all, properties)
		}
		if !slices.Equal(always, required) {
			t.Errorf("%s always has the fields %v, documented as required are %v", name, always, required)
		}
	}
	words := func(name string, want ...string) {
		s, err := d.resolve(map[string]any{"$ref": "#/components/schemas/" + name})
		if err != nil {
			t.Error(err)
			return
		}
		var got []string
		for _, w := range list(s["enum"]) {
			got = append(got, w.(string))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s is one of %v, documented is %v", name, want, got)
		}
	}
	words("Action", texts(fleet.Actions())...)
	words("RecommendationState", texts(recommendationStates)...)
	words("ExecutionState", texts(executionStates)...)
}

func texts[S ~string](all []S) []string {
	out := make([]string, len(all))
	for i, s := range all {
		out[i] = string(s)
	}
	return out
}
