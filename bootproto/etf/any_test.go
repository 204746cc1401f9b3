package etf

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestAppendText(t *testing.T) {
	long := strings.Repeat("a", 201)
	for want, b := range map[string][]byte{
		`1.5`:                       frame(70, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0),
		`-0.0`:                      frame(70, 0x80, 0, 0, 0, 0, 0, 0, 0),
		`1.0e+22`:                   frame(70, 0x44, 0x80, 0xf0, 0xcf, 6, 0x4d, 0xd5, 0x92),
		`-2.25`:                     frame(99, "-2.25000000000000000000e+00", 0, 0, 0, 0),
		`1.0e-300`:                  frame(99, "1.00000000000000002506e-300", 0, 0, 0, 0),
		`#{a => 1,[] => #{}}`:       frame(116, 0, 0, 0, 2, 119, 1, "a", 97, 1, 106, 116, 0, 0, 0, 0),
		`<<5:3>>`:                   frame(77, 0, 0, 0, 1, 3, 0xa0),
		`<<1,2,127:7>>`:             frame(77, 0, 0, 0, 3, 7, 1, 2, 0xff),
		`<<>>`:                      frame(109, 0, 0, 0, 0),
		`<<"text">>`:                frame(109, 0, 0, 0, 4, "text"),
		`<<0,255>>`:                 frame(109, 0, 0, 0, 2, 0, 255),
		`<<97,97,97,...>>`:          frame(109, 0, 0, 0, 201, long),
		`"` + long + `"`:            frame(107, 0, 201, long),
		`"\x{e9}\x{a}\"\\"`:         frame(107, 0, 4, 0xe9, '\n', `"\`),
		`[0,1]`:                     frame(107, 0, 2, 0, 1),
		`"\x{65e5}\x{672c}"`:        frame(108, 0, 0, 0, 2, 98, 0, 0, 0x65, 0xe5, 98, 0, 0, 0x67, 0x2c, 106),
		`[26085|a]`:                 frame(108, 0, 0, 0, 1, 98, 0, 0, 0x65, 0xe5, 119, 1, "a"),
		`[55296,128]`:               frame(108, 0, 0, 0, 2, 98, 0, 0, 0xd8, 0, 97, 128, 106),
		`[97,b]`:                    frame(108, 0, 0, 0, 2, 97, 97, 119, 1, "b", 106),
		`{'end',maybe_not,'maybe'}`: frame(104, 3, 119, 3, "end", 119, 9, "maybe_not", 119, 5, "maybe"),
		`16#0807060504030201`:       frame(111, 0, 0, 0, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0),
		`-1`:                        frame(111, 0, 0, 0, 1, 1, 1),
		`fun lists:map/2`:           frame(113, 119, 5, "lists", 119, 3, "map", 97, 2),
		`#Pid<a@b.80.1>`:            frame(88, 119, 3, "a@b", 0, 0, 0, 80, 0, 0, 0, 1, 1, 2, 3, 4),
		`#Pid<a@b.80.2>`:            frame(103, 100, 0, 3, "a@b", 0, 0, 0, 80, 0, 0, 0, 2, 1),
		`#Port<a@b.7>`:              frame(89, 119, 3, "a@b", 0, 0, 0, 7, 1, 2, 3, 4),
		`#Port<a@b.8>`:              frame(102, 119, 3, "a@b", 0, 0, 0, 8, 1),
		`#Port<a@b.4294967296>`:     frame(120, 119, 3, "a@b", 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4),
		`#Ref<a@b.1.2>`:             frame(90, 0, 2, 119, 3, "a@b", 9, 9, 9, 9, 0, 0, 0, 1, 0, 0, 0, 2),
		`#Ref<a@b.3>`:               frame(114, 0, 1, 119, 3, "a@b", 9, 0, 0, 0, 3),
		`#Ref<a@b.4>`:               frame(101, 119, 3, "a@b", 0, 0, 0, 4, 9),
		`{#Fun<m.42.7>,x}`: frame(104, 2, 112, 0, 0, 0, 0, 1, make([]byte, 16), 0, 0, 0, 42, 0, 0, 0, 2, 119, 1, "m", 97, 42, 97, 7,
			88, 119, 3, "a@b", make([]byte, 12), 104, 1, 106, 107, 0, 1, "v", 119, 1, "x"),
		strings.Repeat("{", 128) + "..." + strings.Repeat("}", 128): append(frame(bytes.Repeat([]byte{104, 1}, 5000)), 106),
	} {
		d, err := NewDecoder(append(b, "after"...))
		if err != nil {
			t.Fatal(err)
		}
		raw := d
		got, cut, err := d.AppendText([]byte("before "))
		if err != nil || string(got) != "before "+want {
			t.Errorf("%v: %s, %v; want %s", b, got, err, want)
		}
		if strings.Contains(want, "<<97,97,97,...>>") && !slices.Equal(cut, []int{201}) || !strings.Contains(want, ",...>>") && len(cut) > 0 {
			t.Errorf("%s: cut %v", want, cut)
		}
		value, err := raw.Raw()
		if err != nil || !bytes.Equal(value, b[1:]) || string(raw.Left()) != "after" || string(d.Left()) != "after" {
			t.Errorf("%s: raw %v, %v; %q and %q are left", want, value, err, raw.Left(), d.Left())
		}
	}
}

func TestNextAnyRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":                       {},
		"compressed":                  {80, 0, 0, 0, 1, 0x78, 0x9c, 0x63, 0},
		"local":                       {121, 1, 2, 3, 4, 106},
		"old fun":                     {117, 0, 0, 0, 0},
		"atom of the cache":           {82, 0},
		"short float":                 {70, 0, 0, 0, 0, 0, 0, 0},
		"not a number":                {70, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0},
		"infinite":                    {70, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0},
		"float that is none":          append([]byte{99}, strings.Repeat("x", 31)...),
		"map longer than frame":       {116, 0, 0, 0, 2, 106, 106, 106},
		"map of 2^32-1":               {116, 255, 255, 255, 255, 106},
		"map without values":          {116, 0, 0, 0, 1, 106},
		"nine bits":                   {77, 0, 0, 0, 1, 9, 1},
		"no bits of a byte":           {77, 0, 0, 0, 1, 0, 1},
		"bits of no byte":             {77, 0, 0, 0, 0, 1},
		"large bignum of 2^32-1":      {111, 255, 255, 255, 255, 0, 1},
		"pid of a number":             {88, 97, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"short pid":                   {88, 119, 1, 'a', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"reference of too many words": {90, 255, 255, 119, 1, 'a', 0, 0, 0, 0},
		"reference without a size":    {90, 0},
		"fun of 2^32-1 variables":     append(append([]byte{112, 0, 0, 0, 0, 1}, make([]byte, 20)...), 255, 255, 255, 255, 106),
		"fun without its parts":       append(append([]byte{112, 0, 0, 0, 0, 1}, make([]byte, 20)...), 0, 0, 0, 0, 106, 106, 106),
		"export without arity":        {113, 119, 1, 'a', 119, 1, 'b'},
		"list without tail":           {108, 0, 0, 0, 1, 106},
		"nothing but depth":           bytes.Repeat([]byte{104, 1}, 1_000_000),
		"pending values":              append(bytes.Repeat([]byte{104, 255}, 100), make([]byte, 300)...),
	} {
		d := NewValue(b)
		if value, err := d.Raw(); !errors.Is(err, ErrMalformed) || len(d.Left()) != len(b) {
			t.Errorf("%s: %v, %v, %d bytes left", name, value, err, len(d.Left()))
		}
		if text, _, err := d.AppendText(nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
}

func TestCompress(t *testing.T) {
	frame := AppendName([]byte{Version}, strings.Repeat("a", 70_000))
	packed := Deflate(frame)
	if len(packed) > 1000 || !bytes.Equal(Deflate(packed), packed) {
		t.Fatalf("%d bytes became %d", len(frame), len(packed))
	}
	if got, err := Inflate(packed, len(frame)); err != nil || !bytes.Equal(got, frame) {
		t.Errorf("%d bytes came back as %d, %v", len(frame), len(got), err)
	}
	if got, err := Inflate(frame, 1); err != nil || !bytes.Equal(got, frame) {
		t.Errorf("what is not compressed: %v", err)
	}
	for _, short := range [][]byte{nil, {Version}, {Version, tagNil}, []byte("no frame")} {
		if got := Deflate(short); !bytes.Equal(got, short) {
			t.Errorf("% x became % x", short, got)
		}
	}
	if _, err := Inflate(packed, len(frame)-1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("with a limit: %v", err)
	}
	liar := slices.Clone(packed)
	liar[5]++
	bomb := slices.Clone(packed)
	bomb[5]--
	for name, b := range map[string][]byte{
		"cut off": packed[:len(packed)-6], "no head": packed[:5], "no stream": {Version, 80, 0, 0, 0, 1, 1, 2, 3}, "less than it claims": liar, "more than it claims": bomb,
	} {
		if _, err := Inflate(b, math.MaxInt32); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzAny(f *testing.F) {
	for _, b := range [][]byte{
		{116, 0, 0, 0, 1, 106, 70, 0, 0, 0, 0, 0, 0, 0, 0}, {113, 119, 1, 'm', 119, 1, 'f', 97, 1}, {77, 0, 0, 0, 1, 3, 0xa0},
		{90, 0, 1, 119, 1, 'a', 9, 9, 9, 9, 0, 0, 0, 1}, {111, 0, 0, 0, 1, 1, 1}, append([]byte{99}, "1.5e+00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...),
		append(append([]byte{112, 0, 0, 0, 0, 1}, make([]byte, 20)...), 0, 0, 0, 0, 119, 1, 'm', 97, 0, 97, 1, 88, 119, 1, 'a', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		Deflate(append([]byte{Version, 107, 1, 0}, bytes.Repeat([]byte{'a'}, 256)...)),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if frame, err := Inflate(b, 1<<16); err == nil && len(frame) > max(len(b), 1<<16) {
			t.Fatalf("inflated to %d bytes", len(frame))
		}
		d := NewValue(b)
		raw := d
		value, err := raw.Raw()
		text, _, textErr := d.AppendText(nil)
		// A text is refused for what a number or a name must be in a fun, too.
		if err != nil && textErr == nil {
			t.Fatalf("no value (%v), but a text: %s", err, text)
		}
		if textErr == nil && len(d.Left()) != len(b)-len(value) {
			t.Fatalf("the value has %d bytes, its text left %d of %d", len(value), len(d.Left()), len(b))
		}
		if textErr == nil && slices.ContainsFunc(text, func(c byte) bool { return c < ' ' || c > '~' }) {
			t.Fatalf("not printable: %q", text)
		}
		if len(text) > 64+16*len(b) {
			t.Fatalf("a text of %d bytes for %d", len(text), len(b))
		}
		strict := NewValue(b)
		if strict.Skip() == nil && (err != nil || len(strict.Left()) != len(raw.Left())) {
			t.Fatalf("Skip reads it, Raw does not: %v", err)
		}
	})
}
