package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// readYAML sets what the file says. The tree of the file is walked here, and
// not by the decoder of the YAML library: its strict mode stops at the first error, does not
// say which key would have been right, and expands aliases.
func (l *loader) readYAML(path string, content []byte) {
	if !utf8.Valid(content) {
		l.fail(path, "is not valid UTF-8")
		return
	}
	file, err := parser.ParseBytes(content, 0, parser.AllowDuplicateMapKey()) // duplicates: see readSection
	if err != nil {
		var located yaml.Error
		if errors.As(err, &located) && located.GetToken() != nil {
			l.fail(at(path, located.GetToken()), "%s", located.GetMessage())
		} else {
			l.fail(path, "%q", abbreviate(err.Error()))
		}
		return
	}
	y := &yamlReader{loader: l, path: path, first: map[string]string{}}
	documents := 0
	for _, document := range file.Docs {
		if document.Body == nil || document.Body.Type() == ast.CommentType {
			continue
		}
		if documents++; documents > 1 {
			l.fail(at(path, document.Body.GetToken()), "a second YAML document; want one")
			return
		}
		y.readSection("", document.Body)
	}
}

// yamlReader walks one YAML document.
type yamlReader struct {
	*loader
	path  string
	first map[string]string // by path of key or section: where it stands first
}

func at(path string, t *token.Token) string {
	if t == nil || t.Position == nil {
		return path
	}
	return fmt.Sprintf("%s:%d", path, t.Position.Line)
}

// readSection reads the keys of section, "" the whole document.
func (y *yamlReader) readSection(section string, node ast.Node) {
	var values []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	case *ast.NullNode: // a section whose keys are all comments
		return
	default:
		where := "the file"
		if section != "" {
			where = section
		}
		y.fail(at(y.path, node.GetToken()), "%s: want keys and values, not %s", where, describe(node))
		return
	}
	for _, value := range values {
		from := at(y.path, value.Key.GetToken())
		name, ok := plain(value.Key)
		if !ok {
			y.fail(from, "want a plain key, not %s", describe(value.Key))
			continue
		}
		path := join(section, name)
		if first, twice := y.first[path]; twice {
			y.fail(from, "%q: stands twice, first at %s", abbreviate(path), first)
			continue
		}
		y.first[path] = from
		if k, known := y.table.byPath[path]; known && !strings.Contains(name, ".") {
			y.origin[path] = from
			y.set(y.field(k), k.path, value.Value)
		} else if _, known := y.table.sections[path]; known && name != "" && !strings.Contains(name, ".") {
			y.readSection(path, value.Value)
		} else {
			y.fail(from, "%q: unknown key; the nearest valid one is %s", abbreviate(path), y.table.nearest(section, name))
		}
	}
}

// set sets one key from its node.
func (y *yamlReader) set(v reflect.Value, path string, node ast.Node) {
	sequence, isList := node.(*ast.SequenceNode)
	if v.Kind() != reflect.Slice {
		if text, ok := plain(node); !ok || !setText(v, text) {
			y.fail(at(y.path, node.GetToken()), "%s: want %s, not %s", path, want(v.Type()), describe(node))
		}
		return
	}
	if !isList {
		y.fail(at(y.path, node.GetToken()), "%s: want %s, not %s", path, want(v.Type()), describe(node))
		return
	}
	list := reflect.MakeSlice(v.Type(), len(sequence.Values), len(sequence.Values))
	for i, item := range sequence.Values {
		if text, ok := plain(item); !ok || !setText(list.Index(i), text) {
			y.fail(at(y.path, item.GetToken()), "%s: want %s, not %s", path, want(v.Type()), describe(item))
		}
	}
	v.Set(list)
}

// plain returns the text of a scalar as it is written, without quotes. Null is
// no text: an empty one is written "".
func plain(node ast.Node) (text string, ok bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// describe says what a node is, for an error.
func describe(node ast.Node) string {
	if text, ok := plain(node); ok {
		return fmt.Sprintf("%q", abbreviate(text))
	}
	switch node.(type) {
	case *ast.NullNode:
		return `nothing (an empty text is written "")`
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode, *ast.AnchorNode, *ast.MergeKeyNode:
		return "an anchor or alias, which are not used here"
	case *ast.LiteralNode:
		return "a text block"
	}
	return "this YAML construct"
}
