package loader

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"eboot/bootproto/etf"
)

// ErrScript: the bytes are no boot script, or none that can be rewritten.
var ErrScript = errors.New("not a boot script")

// Limits of one script. The largest releases have some ten thousand modules in a
// thousand instructions.
const (
	MaxScriptSize   = 64 << 20 // bytes, inflated
	maxInstructions = 100_000
	maxNames        = 400_000 // modules and directories together
)

// kind says what an instruction is, as far as it matters here.
type kind byte

const (
	other kind = iota
	preLoaded
	progress
	codePath // {path,Dirs}
	primLoad
	kernelLoadCompleted
)

// instruction is one element of the script's list.
type instruction struct {
	kind  kind
	raw   []byte   // its bytes
	arg   []byte   // the bytes of the second element of its tuple, if it has one
	names []string // modules of preLoaded and primLoad, directories of codePath
	// dirs are the bytes of each element of codePath. Its name is empty when it is
	// none that init would take for a name with a variable.
	dirs [][]byte
}

// Script is a boot script that was read.
type Script struct {
	head         []byte // from the version byte to the list, which is not in it
	id           []byte // {Name,Vsn}
	instructions []instruction
	ours         bool // it brings our loader already
}

// Parse reads a boot script, compressed or not. The error is ErrScript, with the
// reason. The script points into the bytes given.
func Parse(script []byte) (*Script, error) {
	s, err := parse(script)
	if err != nil {
		return nil, fmt.Errorf("parse boot script: %w", err)
	}
	return s, nil
}

func parse(script []byte) (*Script, error) {
	if len(script) > MaxScriptSize {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", len(script), MaxScriptSize, ErrScript)
	}
	frame, err := etf.Inflate(script, MaxScriptSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrScript)
	}
	d, err := etf.NewDecoder(frame)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrScript)
	}
	if t, err := d.NextAny(); err != nil || t.Kind != etf.Tuple || t.Len != 3 {
		return nil, fmt.Errorf("no tuple of three: %w", ErrScript)
	}
	if t, err := d.NextAny(); err != nil || atom(t) != "script" {
		return nil, fmt.Errorf("no script: %w", ErrScript)
	}
	s := &Script{}
	if s.id, err = d.Raw(); err != nil {
		return nil, fmt.Errorf("its name: %w: %w", err, ErrScript)
	}
	s.head = frame[:len(frame)-len(d.Left())]
	list, err := d.NextAny()
	switch {
	case err != nil || list.Kind != etf.List && list.Kind != etf.Nil:
		return nil, fmt.Errorf("no list of instructions: %w", ErrScript)
	case list.Len > maxInstructions:
		return nil, fmt.Errorf("%d instructions, at most %d: %w", list.Len, maxInstructions, ErrScript)
	}
	left := maxNames
	for i := range list.Len {
		raw, err := d.Raw()
		if err != nil {
			return nil, fmt.Errorf("instruction %d: %w: %w", i+1, err, ErrScript)
		}
		in := s.read(raw)
		if left -= len(in.names); left < 0 {
			return nil, fmt.Errorf("instruction %d: more than %d modules and directories: %w", i+1, maxNames, ErrScript)
		}
		s.instructions = append(s.instructions, in)
	}
	if list.Kind == etf.List {
		if t, err := d.NextAny(); err != nil || t.Kind != etf.Nil {
			return nil, fmt.Errorf("an improper list of instructions: %w", ErrScript)
		}
	}
	return s, nil
}

// read classifies the instruction whose bytes are raw, which are one whole value.
func (s *Script) read(raw []byte) instruction {
	in := instruction{raw: raw}
	d := etf.NewValue(raw)
	t, _ := d.NextAny()
	if t.Kind != etf.Tuple || t.Len == 0 {
		return in
	}
	arity := t.Len
	t, _ = d.NextAny()
	name := atom(t)
	if arity > 1 {
		in.arg, _ = d.Raw()
	}
	switch {
	case name == "kernel_load_completed" && arity == 1:
		in.kind = kernelLoadCompleted
	case name == "preLoaded" && arity == 2:
		in.kind = preLoaded
		in.names, _ = modules(in.arg)
	case name == "progress" && arity == 2:
		in.kind = progress
	case name == "primLoad" && arity == 2:
		var ok bool
		if in.names, ok = modules(in.arg); ok {
			in.kind = primLoad
		}
	case name == "path" && arity == 2:
		if names, dirs, ok := directories(in.arg); ok {
			in.kind, in.names, in.dirs = codePath, names, dirs
		}
	case name == "kernelProcess" && arity == 3:
		t := first(in.arg)
		s.ours = s.ours || atom(t) == moduleName
	case name == "apply" && arity == 2:
		s.ours = s.ours || appliesOurs(in.arg)
	}
	return in
}

// appliesOurs reports whether the argument of an apply is {eboot_loader,_,_} or
// {erlang,load_module,[eboot_loader|_]}.
func appliesOurs(arg []byte) bool {
	d := etf.NewValue(arg)
	if t, err := d.NextAny(); err != nil || t.Kind != etf.Tuple || t.Len != 3 {
		return false
	}
	module, _ := d.NextAny()
	if atom(module) == moduleName {
		return true
	}
	if function, _ := d.NextAny(); atom(module) != "erlang" || atom(function) != "load_module" {
		return false
	}
	if t, err := d.NextAny(); err != nil || t.Kind != etf.List {
		return false
	}
	t, err := d.NextAny()
	return err == nil && atom(t) == moduleName
}

// first is the token that a value begins with.
func first(value []byte) etf.Token {
	d := etf.NewValue(value)
	t, _ := d.NextAny()
	return t
}

// atom returns the text of an atom, and nothing for anything else.
func atom(t etf.Token) string {
	switch t.Kind {
	case etf.Atom:
		return string(t.Bytes)
	case etf.LatinAtom:
		return latin(t.Bytes)
	default:
		return ""
	}
}

// latin is Latin-1 in UTF-8.
func latin(b []byte) string {
	plain := !slices.ContainsFunc(b, func(c byte) bool { return c > math.MaxInt8 })
	if plain {
		return string(b)
	}
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

// elements returns the bytes of each element of a list; ok is false when the value
// is none, or improper. Lists that are strings have no elements that matter here.
func elements(value []byte) (all [][]byte, ok bool) {
	d := etf.NewValue(value)
	t, err := d.NextAny()
	if err != nil || t.Kind != etf.List || t.Len > maxNames {
		return nil, err == nil && t.Kind == etf.Nil
	}
	for range t.Len {
		raw, err := d.Raw()
		if err != nil {
			return nil, false
		}
		all = append(all, raw)
	}
	t, err = d.NextAny()
	return all, err == nil && t.Kind == etf.Nil
}

// modules reads a list of atoms.
func modules(value []byte) (names []string, ok bool) {
	all, ok := elements(value)
	for _, raw := range all {
		t := first(raw)
		if t.Kind != etf.Atom && t.Kind != etf.LatinAtom {
			return nil, false
		}
		names = append(names, atom(t))
	}
	return names, ok
}

// directories reads the argument of a path instruction. An element may be an atom
// or a string, as for init; any other has an empty name.
func directories(value []byte) (names []string, dirs [][]byte, ok bool) {
	dirs, ok = elements(value)
	for _, raw := range dirs {
		names = append(names, directory(raw))
	}
	return names, dirs, ok
}

func directory(raw []byte) string {
	d := etf.NewValue(raw)
	if t := first(raw); t.Kind == etf.Atom || t.Kind == etf.LatinAtom {
		return atom(t)
	}
	name, err := d.AppendName(nil)
	if err != nil {
		return ""
	}
	return string(name)
}

// Paths returns the directories of each path instruction, as they are written:
// "$ROOT/lib/kernel-8.5.3/ebin".
func (s *Script) Paths() [][]string {
	var paths [][]string
	for _, in := range s.instructions {
		if in.kind == codePath {
			paths = append(paths, slices.Clone(in.names))
		}
	}
	return paths
}

// Modules returns the modules that init loads while it evaluates the script: those
// of primLoad, each once, in order, without those that are loaded already. In
// interactive mode the instructions after kernel_load_completed load none.
func (s *Script) Modules(embedded bool) []string {
	var names []string
	for _, load := range s.loads(embedded) {
		names = append(names, load.modules...)
	}
	return names
}

// load is a primLoad with the path that is in force.
type load struct {
	modules []string
	path    []string
}

func (s *Script) loads(embedded bool) []load {
	loaded := map[string]bool{}
	var path []string
	var loads []load
	for _, in := range s.instructions {
		switch in.kind {
		case preLoaded:
			for _, name := range in.names {
				loaded[name] = true
			}
		case codePath:
			path = in.names
		case kernelLoadCompleted:
			if !embedded {
				return loads
			}
		case primLoad:
			l := load{path: path}
			for _, name := range in.names {
				if !loaded[name] {
					loaded[name] = true
					l.modules = append(l.modules, name)
				}
			}
			loads = append(loads, l)
		}
	}
	return loads
}
