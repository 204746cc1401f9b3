package beamfile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

// beam puts a file together.
func beam(chunks ...Chunk) []byte {
	out := []byte("FOR1\x00\x00\x00\x00BEAM")
	for _, c := range chunks {
		out = binary.BigEndian.AppendUint32(append(out, c.ID...), uint32(len(c.Data)))
		out = append(out, c.Data...)
		out = append(out, make([]byte, -len(c.Data)&3)...)
	}
	return out
}

func packed(t testing.TB, file []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(file); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// atoms is a table of one atom.
func atoms(count int32, head string, name string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(count)), head+name...)
}

// module has the chunks that every module has, and more.
func module(more ...Chunk) []Chunk {
	return append([]Chunk{{"AtU8", atoms(1, "\x01", "m")}, {"Code", []byte("code")}, {"StrT", nil}, {"ImpT", []byte("i")}, {"ExpT", []byte("export")}}, more...)
}

func without(id string, chunks []Chunk) (rest []Chunk) {
	for _, c := range chunks {
		if c.ID != id {
			rest = append(rest, c)
		}
	}
	return rest
}

func TestCodeMD5IsThatOfTheCode(t *testing.T) {
	fun := strings.Repeat("f", 20)
	table := func(uniq string) Chunk {
		return Chunk{"FunT", []byte("\x00\x00\x00\x02" + fun + uniq + fun + uniq + "tail")}
	}
	whole := module(table("1234"), Chunk{"LitT", []byte("literals")}, Chunk{"Meta", []byte("meta")})
	_, want, err := CodeMD5(beam(whole...))
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(c Chunk) []byte { return beam(append(without(c.ID, whole), c)...) }
	for name, tc := range map[string]struct {
		file []byte
		same bool
	}{
		"more chunks":       {beam(append([]Chunk{{"Dbgi", []byte("x")}, {"Line", []byte("xy")}, {"CInf", nil}}, whole...)...), true},
		"another order":     {replaced(whole[1]), true},
		"compressed":        {packed(t, beam(whole...)), true},
		"no padding":        {bytes.TrimRight(beam(append(whole, Chunk{"Attr", []byte("a")})...), "\x00"), true},
		"numbers of funs":   {replaced(table("5678")), true},
		"other code":        {replaced(Chunk{"Code", []byte("edoc")}), false},
		"other literals":    {replaced(Chunk{"LitT", []byte("l")}), false},
		"no literals":       {beam(without("LitT", whole)...), false},
		"other meta":        {replaced(Chunk{"Meta", []byte("x")}), false},
		"other funs":        {replaced(Chunk{"FunT", []byte("\x00\x00\x00\x02" + strings.Repeat("g", 20) + "1234" + fun + "1234tail")}), false},
		"a short fun table": {replaced(Chunk{"FunT", []byte("\x00\x00\x00")}), false},
	} {
		name2, got, err := CodeMD5(tc.file)
		if err != nil || name2 != "m" || (got == want) != tc.same {
			t.Errorf("%s: module %q, %x, %v; the first has %x", name, name2, got, err, want)
		}
	}
}

func TestModuleName(t *testing.T) {
	rest := without("AtU8", module())
	for name, tc := range map[string]struct {
		atoms Chunk
		want  string
	}{
		"UTF-8":            {Chunk{"AtU8", atoms(1, "\x03", "aä")}, "aä"},
		"Latin-1":          {Chunk{"Atom", atoms(1, "\x02", "a\xe4")}, "aä"},
		"OTP 28":           {Chunk{"AtU8", atoms(-1, "\x10", "m")}, "m"},
		"OTP 28, 300 long": {Chunk{"AtU8", atoms(-1, "\x28\x2c", strings.Repeat("ä", 150))}, strings.Repeat("ä", 150)},
	} {
		if got, _, err := CodeMD5(beam(append(rest, tc.atoms)...)); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestErrFormat(t *testing.T) {
	whole := module()
	good := beam(whole...)
	many := make([]Chunk, maxChunks+1)
	for i := range many {
		many[i].ID = "Many"
	}
	tail := func(atoms []byte) []byte { return beam(append(without("AtU8", whole), Chunk{"AtU8", atoms})...) }
	for name, file := range map[string][]byte{
		"nothing":            nil,
		"text":               []byte("-module(m)."),
		"another container":  []byte("FOR1\x00\x00\x00\x00AIFF"),
		"head cut off":       append(good, "Xxxx\x00"...),
		"chunk cut off":      append(good, "Xxxx\x00\x00\x00\x05abcd"...),
		"chunk of 4 GiB":     append(good, "Xxxx\xff\xff\xff\xff"...),
		"too many chunks":    beam(many...),
		"a chunk twice":      beam(append(whole, whole[1])...),
		"no code":            beam(without("Code", whole)...),
		"no exports":         beam(without("ExpT", whole)...),
		"no atoms":           beam(without("AtU8", whole)...),
		"empty atoms":        tail(atoms(0, "", "")),
		"atom cut off":       tail(atoms(1, "\x05", "abcd")),
		"empty atom":         tail(atoms(1, "\x00", "abcd")),
		"atom cut off, 28":   tail(atoms(-1, "\x28\x2c", "abcd")),
		"atom of a bad size": tail(atoms(-1, "\x1b", "abcd")),
		"gzip cut off":       packed(t, good)[:30],
		"no gzip":            []byte("\x1f\x8bxxxxxxxxxxxxxxxx"),
		"a bomb":             bytes.Repeat(packed(t, make([]byte, MaxSize/64)), 65), // gzip goes on behind an end
		"too large":          append(good, make([]byte, MaxSize)...),
	} {
		if _, _, err := CodeMD5(file); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCodeMD5(f *testing.F) {
	real, err := os.ReadFile("testdata/pg2.beam") // of OTP 25
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	f.Add(packed(f, real))
	f.Add(beam(module()...))
	f.Add(beam(module(Chunk{"FunT", make([]byte, 52)}, Chunk{"LitT", []byte("literals")})...))
	f.Add(append(beam(module()[1:]...), beam(Chunk{"Atom", atoms(-1, "\x10", "m")})[12:]...))
	f.Add(packed(f, beam(module()...)))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, file []byte) {
		before := bytes.Clone(file)
		name, sum, err := CodeMD5(file)
		if !bytes.Equal(before, file) {
			t.Fatal("the bytes were changed")
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		chunks, err := Chunks(file)
		if err != nil || name == "" {
			t.Fatalf("module %q, %v", name, err)
		}
		if _, again, err := CodeMD5(beam(chunks...)); err != nil || again != sum {
			t.Errorf("put together again: %x, %v; was %x", again, err, sum)
		}
	})
}
