package loader

import (
	"iter"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"eboot"
	"eboot/bootproto/etf"
)

// maxTreeEntries is how many entries a slave is told of. What is beyond costs it a
// question each.
const maxTreeEntries = 20_000

// Node is one name of a bundle's tree.
type Node struct {
	Path    string // relative, slash-separated, clean; the root is "" or "."
	Kind    eboot.Kind
	Size    int64 // of files, in bytes
	ModTime int64 // Unix seconds
	Exec    bool  // of files
}

// entry is a Node with the entries of its directory. A whole one is told of.
type entry struct {
	Node
	children map[string]*entry
	whole    bool
	code     bool // it leads to code
}

// EncodeTree returns the tree as the loader wants it: the external form, compressed
// where that is shorter, of the root's Entry, which is one of
//
//	{f,Size,Mtime}             a file
//	{x,Size,Mtime}             an executable file
//	{d,Mtime,#{Name => Entry}} a directory
//	wire                       ask the server
//
// with names as binaries and Mtime in Unix seconds. wire are symlinks, files that end in
// .ez, which are directories to a slave, directories with a name that is not plain
// ASCII, those that no code is looked for in (sources, manuals, assets), and directories beyond
// 20,000 entries, breadth first. The nodes may come
// in any order; a directory that has none of its own is there all the same. What
// stands below something that is no directory is left out.
func EncodeTree(nodes iter.Seq[Node]) []byte {
	root := &entry{Node: Node{Kind: eboot.KindDirectory}}
	for n := range nodes {
		if n.Path == "" || n.Path == "." {
			root.ModTime = n.ModTime
			continue
		}
		e := root
		for name := range strings.SplitSeq(n.Path, "/") {
			e = e.child(name)
		}
		e.Node = n
	}
	root.mark("")
	root.choose()
	return etf.Deflate(root.encode([]byte{etf.Version}))
}

func (e *entry) child(name string) *entry {
	c := e.children[name]
	if c == nil {
		c = &entry{Node: Node{Kind: eboot.KindDirectory}}
		if e.children == nil {
			e.children = map[string]*entry{}
		}
		e.children[name] = c
	}
	return c
}

// names returns the names in a directory, sorted, so that equal trees have equal
// bytes.
func (e *entry) names() []string { return slices.Sorted(maps.Keys(e.children)) }

// choose marks the directories that the slave is told of: those that code is looked for
// in and those above them, as an installation has ten times as many files that no
// boot ever asks for.
func (e *entry) choose() {
	left := maxTreeEntries
	for queue := []*entry{e}; len(queue) > 0; queue = queue[1:] {
		d := queue[0]
		names := d.names()
		if len(names) > left || slices.ContainsFunc(names, notASCII) {
			continue
		}
		left -= len(names)
		d.whole = true
		for _, name := range names {
			if c := d.children[name]; c.Kind == eboot.KindDirectory && c.code {
				queue = append(queue, c)
			}
		}
	}
}

// mark notes which directories have what a node looks for when it boots and loads modules,
// or lead to it. It recurses as deep as a path has components.
func (e *entry) mark(name string) {
	e.code = name == "ebin" || len(e.children) == 0
	for name, c := range e.children {
		if c.Kind == eboot.KindDirectory {
			c.mark(name)
			e.code = e.code || c.code && (name == "ebin" || len(c.children) > 0)
			continue
		}
		switch path.Ext(name) {
		case ".beam", ".app", ".boot", ".config":
			e.code = true
		}
	}
}

func notASCII(name string) bool {
	return strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r >= math.MaxInt8 })
}

// encode appends the Entry. It recurses as deep as a path has components, which a
// manifest bounds.
func (e *entry) encode(b []byte) []byte {
	switch {
	case e.Kind == eboot.KindDirectory && e.whole:
		b = etf.AppendAtom(etf.AppendTuple(b, 3), "d")
		b = etf.AppendMap(etf.AppendInteger(b, e.ModTime), len(e.children))
		for _, name := range e.names() {
			c := e.children[name]
			b = text(b, name)
			if c.Kind == eboot.KindFile && strings.HasSuffix(name, ".ez") {
				b = etf.AppendAtom(b, "wire")
				continue
			}
			b = c.encode(b)
		}
		return b
	case e.Kind == eboot.KindFile:
		letter := "f"
		if e.Exec {
			letter = "x"
		}
		b = etf.AppendAtom(etf.AppendTuple(b, 3), letter)
		return etf.AppendInteger(etf.AppendInteger(b, e.Size), e.ModTime)
	default:
		return etf.AppendAtom(b, "wire")
	}
}
