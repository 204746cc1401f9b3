package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// key is one thing that can be set: a leaf of Config.
type key struct {
	path  string // boot.tcp_ports
	index []int  // of the field in Config, for reflect.Value.FieldByIndex
}

func (k key) variable() string {
	return "EBOOT_" + strings.ToUpper(strings.ReplaceAll(k.path, ".", "_"))
}

// keyTable is what the yaml tags of Config say.
type keyTable struct {
	keys     []key
	byPath   map[string]key
	sections map[string][]string // by path, "" the document: the names directly below
}

func newKeyTable() *keyTable {
	t := &keyTable{byPath: map[string]key{}, sections: map[string][]string{}}
	t.add(reflect.TypeFor[Config](), "", nil)
	return t
}

func (t *keyTable) add(section reflect.Type, path string, index []int) {
	for i := range section.NumField() {
		field := section.Field(i)
		name := field.Tag.Get("yaml")
		t.sections[path] = append(t.sections[path], name)
		full, at := join(path, name), append(index[:len(index):len(index)], i)
		if isLeaf(field.Type) {
			k := key{path: full, index: at}
			t.keys = append(t.keys, k)
			t.byPath[full] = k
		} else {
			t.add(field.Type, full, at)
		}
	}
}

func join(section, name string) string {
	if section == "" {
		return name
	}
	return section + "." + name
}

func isLeaf(t reflect.Type) bool {
	return t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// nearest returns the valid path that name, found in section, most likely meant.
// A name that stands directly in the section is preferred to an equally near one
// elsewhere.
func (t *keyTable) nearest(section, name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	best, cost := "", 0
	consider := func(path string, distance int) {
		if best == "" || distance < cost {
			best, cost = path, distance
		}
	}
	for _, n := range t.sections[section] {
		consider(join(section, n), 2*editDistance(name, n))
	}
	for _, k := range t.keys {
		last := k.path[strings.LastIndexByte(k.path, '.')+1:]
		consider(k.path, 2*min(editDistance(name, last), editDistance(name, k.path))+1)
	}
	return best
}

// editDistance counts the insertions, deletions and replacements of bytes that
// make b of a. Long names are cut: no key is that long.
func editDistance(a, b string) int {
	const longest = 64
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	var rows [2][longest + 1]int
	previous, row := &rows[0], &rows[1]
	for j := range len(b) + 1 {
		previous[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			replace := previous[j]
			if a[i] != b[j] {
				replace++
			}
			row[j+1] = min(replace, previous[j+1]+1, row[j]+1)
		}
		previous, row = row, previous
	}
	return previous[len(b)]
}

// setText sets one value, not a list, from text; ok is false when the text does
// not have the shape that want describes.
func setText(v reflect.Value, text string) (ok bool) {
	switch p := v.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(text)) == nil
	case *time.Duration:
		d, err := time.ParseDuration(text)
		*p = d
		return err == nil
	case *bool:
		*p = text == "true"
		return text == "true" || text == "false"
	case *int:
		n, err := strconv.Atoi(text)
		*p = n
		return err == nil
	}
	v.SetString(text) // the tests set every key, so that no other kind can hide
	// No key means anything with a line break or a NUL in it; logs and errors show values.
	return !strings.ContainsFunc(text, unicode.IsControl)
}

// want describes the values of a type to an operator.
func want(t reflect.Type) string {
	switch reflect.Zero(t).Interface().(type) {
	case time.Duration:
		return "a duration such as 30ms or 1m"
	case bool:
		return "true or false"
	case int:
		return "a whole number"
	case PortRange:
		return "ports such as 4368-4399, one port, or 0 for any free one"
	}
	switch t.String() {
	case "netip.Addr":
		return "an IP address such as 10.1.2.3"
	case "netip.AddrPort":
		return "ADDRESS:PORT such as 127.0.0.1:4380"
	}
	if t.Kind() == reflect.Slice {
		return fmt.Sprintf("a list, each item %s", want(t.Elem()))
	}
	return "a text"
}
