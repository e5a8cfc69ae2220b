package config

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// mostDepth bounds how deep values are nested: the parser's memory grows with the square of it,
// and a running control plane reads policy files.
const mostDepth = 100

// mostParts bounds the keys, values and pairs of them in a file.
const mostParts = 200_000

// decode reads one YAML document over what the struct has. Errors have the line, but for those
// of the file as a whole. The file is nil where there is nothing to read.
func decode(data []byte, into any) (*ast.File, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if line := tooDeep(data); line > 0 {
		return nil, wrongAt(&token.Token{Position: &token.Position{Line: line, Column: 1}}, fmt.Sprintf("values are nested more than %d deep", mostDepth))
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, err
	}
	if len(file.Docs) > 1 {
		return nil, fmt.Errorf("the file has %d documents (---), and must be one", len(file.Docs))
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil || file.Docs[0].Body.Type() == ast.CommentType {
		return nil, nil
	}
	c := &counter{anchors: make(map[string]int)}
	if ast.Walk(c, file.Docs[0]); c.n > mostParts {
		return nil, fmt.Errorf("the file has more than %d keys and values, its aliases (*) replaced by what they name", mostParts)
	}
	err = yaml.UnmarshalWithOptions(data, into, yaml.Strict())
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		return nil, wrongAt(wrong.Token, fmt.Sprintf("%s stands here, it must be %s", kindInWords(wrong.SrcType), kindInWords(wrong.DstType)))
	}
	if large, ok := errors.AsType[*yaml.OverflowError](err); ok {
		return nil, wrongAt(large.Token, large.SrcNum+" is too large")
	}
	if err == nil {
		err = whole(file.Docs[0].Body, reflect.TypeOf(into).Elem())
	}
	return file, err
}

// counter counts the parts of a document with its aliases replaced by what they name, up to
// mostParts and one: a few aliases of aliases are worth millions.
type counter struct {
	n       int
	anchors map[string]int
}

func (c *counter) add(n int) { c.n = min(c.n+n, mostParts+1) }

func (c *counter) Visit(node ast.Node) ast.Visitor {
	c.add(1)
	switch n := node.(type) {
	case *ast.AliasNode:
		c.add(c.anchors[n.Value.GetToken().Value])
	case *ast.AnchorNode:
		inside := &counter{anchors: c.anchors}
		ast.Walk(inside, n.Value)
		c.anchors[n.Name.GetToken().Value] = inside.n
		c.add(inside.n)
		return nil
	}
	return c
}

func wrongAt(at *token.Token, text string) error {
	return &yaml.SyntaxError{Message: text, Token: at}
}

// tooDeep is the line on which values are nested too deep, or 0. Brackets in text and comments
// count, too: there are few.
func tooDeep(data []byte) int {
	depth, line := 0, 0
	for text := range bytes.Lines(data) {
		line++
		lists := 0 // "- - -", each inside the one before
		for rest := bytes.TrimLeft(text, " "); len(rest) > 1 && (rest[0] == '-' || rest[0] == '?') && rest[1] == ' '; lists++ {
			rest = bytes.TrimLeft(rest[1:], " ")
		}
		for _, b := range text {
			switch b {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(depth-1, 0)
			}
			if depth+lists > mostDepth {
				return line
			}
		}
	}
	return 0
}

// whole refuses fractions where there are whole numbers: the YAML package cuts them off.
func whole(node ast.Node, t reflect.Type) error {
	var text string
	switch n := node.(type) {
	case *ast.AnchorNode:
		return whole(n.Value, t)
	case *ast.TagNode:
		return whole(n.Value, t)
	case *ast.MappingNode:
		if t.Kind() != reflect.Struct {
			return nil
		}
		for _, v := range n.Values {
			if err := whole(v, t); err != nil {
				return err
			}
		}
		return nil
	case *ast.MappingValueNode:
		if t.Kind() != reflect.Struct {
			return nil
		}
		for f := range t.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); name == n.Key.GetToken().Value {
				return whole(n.Value, f.Type)
			}
		}
		return nil
	case *ast.SequenceNode:
		if t.Kind() != reflect.Slice {
			return nil
		}
		for _, v := range n.Values {
			if err := whole(v, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	case *ast.FloatNode, *ast.StringNode:
		text = n.GetToken().Value
	default:
		return nil
	}
	if t.Kind() != reflect.Int && t.Kind() != reflect.Int64 || t == reflect.TypeFor[Duration]() {
		return nil
	}
	if v, err := strconv.ParseFloat(text, 64); err != nil || v != math.Trunc(v) {
		return wrongAt(node.GetToken(), fmt.Sprintf("%s is not a whole number", clip(text)))
	}
	return nil
}

func kindInWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	}
	return "a mapping of keys"
}

// clip shortens what is said of a text.
func clip(text string) string {
	if len(text) > 200 {
		return text[:200] + "…"
	}
	return text
}
