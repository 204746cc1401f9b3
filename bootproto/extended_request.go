package bootproto

import (
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"eboot/bootproto/etf"
)

// The atoms that begin the requests of the extension and their replies.
const (
	atomOpen   = "eboot_open"
	atomFetch  = "eboot_fetch"
	atomFile   = "eboot_file"
	atomDone   = "eboot_done"
	atomReport = "eboot_report"

	atomRestart = "eboot_restart" // from the server, unasked
)

// extensionOf returns the atom of a request of the extension, whatever follows it, or ""
// for a frame that is none.
func extensionOf(frame []byte) string {
	t := readTerms(frame)
	if t.expect(etf.Tuple).Len == 0 {
		return ""
	}
	switch string(t.atom()) {
	case atomOpen:
		return atomOpen
	case atomFetch:
		return atomFetch
	case atomReport:
		return atomReport
	}
	return ""
}

// parseOpen decodes {eboot_open, 1, Digest, [{Key, Value}]}. Keys that are not known, with
// any value, are passed over, and so is what is no such pair: a newer loader may say more.
// ok is false when the rest is malformed or of another version.
func parseOpen(frame []byte) (o Open, ok bool) {
	t := readTerms(frame)
	t.tuple(4)
	t.atom()
	version := t.integer(math.MaxUint8)
	o.Digest = t.text()
	o.Mode = "interactive"
	t.each(maxItems, func() {
		option := t.item()
		if key, n := option.key(); n == 2 {
			o.read(key, &option)
			t.failed = t.failed || option.failed
		}
	})
	return o, !t.failed && version == openLevel
}

// read reads the value of an option, if its key is known.
func (o *Open) read(key string, t *terms) {
	switch key {
	case "bundle":
		o.Bundle = t.text()
	case "script":
		o.Script = t.text()
	case "root":
		o.Root = t.text()
	case "mode":
		o.Mode = t.oneOf("interactive", "embedded")
	case "age":
		o.Age = t.milliseconds()
	case "boot":
		o.Boot = uint64(t.integer(1<<48 - 1))
	case "pack":
		o.Pack = t.oneOf("true", "false") == "true"
	case "want":
		t.each(maxItems, func() {
			switch string(t.atom()) {
			case "tree":
				o.Tree = true
			case "plan":
				o.Plan = true
			}
		})
	case "can":
		t.each(maxItems, func() {
			if string(t.atom()) == "restart" {
				o.CanRestart = true
			}
		})
	}
}

// fetching is the list of paths of a request that was found to be well-formed. The
// paths point into its frame.
type fetching struct {
	paths etf.Decoder // at the first
	count int
}

// parseFetch decodes {eboot_fetch, [Path]}, each path a binary. ok is false when the
// request is malformed or asks for too many.
func parseFetch(frame []byte) (f fetching, ok bool) {
	t := readTerms(frame)
	t.tuple(2)
	t.atom()
	t.each(MaxFetch, func() {
		if f.count == 0 {
			f.paths = t.decoder
		}
		f.count++
		t.binary()
	})
	return f, !t.failed
}

func (f fetching) all(yield func(path []byte) bool) {
	for range f.count {
		if path, err := f.paths.Next(); err != nil || !yield(path.Bytes) {
			return
		}
	}
}

// parseReport decodes {eboot_report, [{phase, Name, Ms} | {switches, N} | {local, N}]}.
// Items that are not known or malformed are passed over. ok is false when the request is
// no list of terms, or of too many.
func parseReport(frame []byte) (r Report, ok bool) {
	t := readTerms(frame)
	t.tuple(2)
	t.atom()
	t.each(maxItems, func() {
		item := t.item()
		// The name of an item and the number of its elements go together.
		switch key, n := item.key(); {
		case key == "phase" && n == 3:
			if p := (Phase{Name: item.atomText(), At: item.milliseconds()}); !item.failed {
				r.Phases = append(r.Phases, p)
			}
		case key == "switches" && n == 2:
			if n := item.integer(math.MaxInt64); !item.failed {
				r.Switches = n
			}
		case key == "local" && n == 2:
			if n := item.integer(math.MaxInt64); !item.failed {
				r.Local = n
			}
		}
	})
	return r, !t.failed
}

// terms reads the values of a request one after the other. When one is not what it must
// be, it has failed, and everything that is read afterwards is zero.
type terms struct {
	decoder etf.Decoder
	latin   bool // the latest atom is in Latin-1
	failed  bool
}

func readTerms(frame []byte) terms {
	d, err := etf.NewDecoder(frame)
	return terms{decoder: d, failed: err != nil}
}

func (t *terms) next() etf.Token {
	if t.failed {
		return etf.Token{}
	}
	token, err := t.decoder.Next()
	t.failed = err != nil
	return token
}

// expect reads a value of one kind.
func (t *terms) expect(kind etf.Kind) etf.Token {
	token := t.next()
	if token.Kind != kind {
		t.failed = true
		return etf.Token{}
	}
	return token
}

// item moves past one whole value of any kind, however deep, and returns what reads it.
func (t *terms) item() terms {
	value, err := t.decoder.Raw()
	t.failed = t.failed || err != nil
	return terms{decoder: etf.NewValue(value), failed: t.failed}
}

// key begins a tuple of n elements that begins with an atom, the key. n is 0 when it is none.
func (t *terms) key() (key string, n int) {
	tuple := t.expect(etf.Tuple)
	if tuple.Len == 0 {
		return "", 0
	}
	if key = string(t.atom()); t.failed {
		return "", 0
	}
	return key, tuple.Len
}

// tuple begins a tuple of n elements.
func (t *terms) tuple(n int) {
	if t.expect(etf.Tuple).Len != n {
		t.failed = true
	}
}

// each reads a proper list of at most most elements; read reads one.
func (t *terms) each(most int, read func()) {
	list := t.next()
	if list.Kind == etf.Nil {
		return
	}
	if list.Kind != etf.List || list.Len > most {
		t.failed = true
		return
	}
	for range list.Len {
		if t.failed {
			return
		}
		read()
	}
	t.expect(etf.Nil)
}

// atom returns the text of an atom as it was sent: for comparing with ASCII.
func (t *terms) atom() []byte {
	token := t.next()
	t.latin = token.Kind == etf.LatinAtom
	if token.Kind != etf.Atom && !t.latin {
		t.failed = true
		return nil
	}
	return token.Bytes
}

// atomText returns the text of an atom in UTF-8.
func (t *terms) atomText() string {
	text := t.atom()
	if !t.latin {
		return string(text)
	}
	var s strings.Builder
	for _, c := range text {
		s.WriteRune(rune(c))
	}
	return s.String()
}

// oneOf reads an atom that must be one of a few.
func (t *terms) oneOf(names ...string) string {
	atom := t.atom()
	for _, name := range names {
		if string(atom) == name {
			return name
		}
	}
	t.failed = true
	return ""
}

// integer reads a number from 0 to most. Those of more than 56 bits are refused.
func (t *terms) integer(most int64) int64 {
	n := t.expect(etf.Integer).Int
	if n < 0 || n > most {
		t.failed = true
		return 0
	}
	return n
}

func (t *terms) milliseconds() time.Duration {
	return time.Duration(t.integer(math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
}

func (t *terms) binary() []byte { return t.expect(etf.Binary).Bytes }

func (t *terms) text() string {
	b := t.binary()
	if len(b) > maxText {
		t.failed = true
		return ""
	}
	return strings.ToValidUTF8(string(b), string(utf8.RuneError))
}
