package etf

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// frame builds a frame of raw bytes and strings.
func frame(parts ...any) []byte {
	b := []byte{Version}
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case rune:
			b = append(b, byte(p))
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

// reencode writes the value at the cursor again, from its tokens.
func reencode(d *Decoder, dst []byte) ([]byte, error) {
	t, err := d.Next()
	if err != nil {
		return dst, err
	}
	switch t.Kind {
	case Tuple:
		if t.Len <= 255 {
			dst = AppendTuple(dst, t.Len)
		} else {
			dst = append(dst, tagLargeTuple, byte(t.Len>>24), byte(t.Len>>16), byte(t.Len>>8), byte(t.Len))
		}
	case List:
		dst = AppendList(dst, t.Len)
	case Nil:
		dst = AppendNil(dst)
	case String:
		dst = append(append(dst, tagString, byte(t.Len>>8), byte(t.Len)), t.Bytes...)
	case Atom:
		if t.Len <= 255 {
			dst = AppendAtom(dst, string(t.Bytes))
		} else {
			dst = append(append(dst, tagAtomUTF8, byte(t.Len>>8), byte(t.Len)), t.Bytes...)
		}
	case LatinAtom:
		dst = append(append(dst, tagAtom, byte(t.Len>>8), byte(t.Len)), t.Bytes...)
	case Integer:
		dst = AppendInteger(dst, t.Int)
	case BigInteger:
		sign := byte(0)
		if t.Int < 0 {
			sign = 1
		}
		dst = append(append(dst, tagSmallBig, byte(t.Len), sign), t.Bytes...)
	case Binary:
		dst = append(AppendBinary(dst, int64(t.Len)), t.Bytes...)
	}
	for range t.children() {
		if dst, err = reencode(d, dst); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func TestDecodeRefuses(t *testing.T) {
	deep := append([]byte{Version}, bytes.Repeat([]byte{tagSmallTuple, 1}, MaxDepth+1)...)
	deep = append(deep, tagNil)
	for name, b := range map[string][]byte{
		"empty":                     {},
		"version only":              {Version},
		"other version":             {130, tagNil},
		"compressed":                frame(80, 0, 0, 0, 1, 0x78, 0x9c, 0x63, 0),
		"float":                     frame(70, 0, 0, 0, 0, 0, 0, 0, 0),
		"map":                       frame(116, 0, 0, 0, 0),
		"large bignum":              frame(111, 0, 0, 0, 1, 0, 1),
		"too deep":                  deep,
		"list of 2^32-1":            frame(tagList, 255, 255, 255, 255, tagNil),
		"list longer than frame":    frame(tagList, 0, 0, 0, 1, tagNil),
		"list without tail":         frame(tagList, 0, 0, 0, 0),
		"tuple of 2^32-1":           frame(tagLargeTuple, 255, 255, 255, 255, tagNil),
		"tuple longer than frame":   frame(tagSmallTuple, 2, tagNil),
		"binary of 2^32-1":          frame(tagBinary, 255, 255, 255, 255, 1),
		"short string":              frame(tagString, 0, 2, 1),
		"short integer":             frame(tagInteger, 0, 0, 0),
		"short bignum":              frame(tagSmallBig, 2, 0, 1),
		"latin atom of 256":         frame(tagAtom, 1, 0, strings.Repeat("a", 256)),
		"atom of 256 characters":    frame(tagAtomUTF8, 1, 0, strings.Repeat("a", 256)),
		"atom that is not UTF-8":    frame(tagSmallAtomUTF8, 1, 255),
		"atom with a surrogate":     frame(tagSmallAtomUTF8, 3, 0xed, 0xa0, 0x80),
		"short small atom":          frame(tagSmallAtom, 2, "a"),
		"tuple header without size": frame(tagSmallTuple),
		"binary without size":       frame(tagBinary, 0, 0),
	} {
		d, err := NewDecoder(b)
		if err == nil {
			err = d.Skip()
		}
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
		if s, err := Format(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: formatted as %s, %v", name, s, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for want, b := range map[string][]byte{
		`{get,"/bin/start.boot"}`:   frame(tagSmallTuple, 2, tagSmallAtomUTF8, 3, "get", tagString, 0, 15, "/bin/start.boot"),
		`{get_cwd,[]}`:              frame(tagLargeTuple, 0, 0, 0, 2, tagAtom, 0, 7, "get_cwd", tagNil),
		`'\x{e9}x y'`:               frame(tagSmallAtom, 4, 0xe9, "x y"),
		`'\x{e9}'`:                  frame(tagAtomUTF8, 0, 2, "é"),
		`''`:                        frame(tagSmallAtom, 0),
		`[1,-2|3]`:                  frame(tagList, 0, 0, 0, 2, tagSmallInteger, 1, tagInteger, 255, 255, 255, 254, tagSmallInteger, 3),
		`[<<"\x{0}\"\\">>]`:         frame(tagList, 0, 0, 0, 1, tagBinary, 0, 0, 0, 3, 0, '"', '\\', tagNil),
		`-258`:                      frame(tagSmallBig, 4, 1, 2, 1, 0, 0),
		`-16#0807060504030201`:      frame(tagSmallBig, 9, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0),
		`{}`:                        frame(tagSmallTuple, 0, "bytes after the term"),
		`"` + longText + `"...`:     frame(tagString, 1, 0, strings.Repeat("a", 256)),
		`{{{{{{{{[]}}}}}}}}`:        append(frame(bytes.Repeat([]byte{tagSmallTuple, 1}, MaxDepth)), tagNil),
		`{{{{{{{{{}}}}}}}}}`:        append(frame(bytes.Repeat([]byte{tagSmallTuple, 1}, MaxDepth)), tagSmallTuple, 0),
		`[[]|{'EXIT'}]`:             frame(tagList, 0, 0, 0, 1, tagNil, tagSmallTuple, 1, tagSmallAtom, 4, "EXIT"),
		`{a@1_B,['1',' ']}`:         frame(tagSmallTuple, 2, tagSmallAtom, 5, "a@1_B", tagList, 0, 0, 0, 2, tagSmallAtom, 1, "1", tagSmallAtom, 1, " ", tagNil),
		`16#ffffffffffffffff`:       frame(tagSmallBig, 8, 0, bytes.Repeat([]byte{255}, 8)),
		`["a"|"b"]`:                 frame(tagList, 0, 0, 0, 1, tagString, 0, 1, "a", tagString, 0, 1, "b"),
		`<<"` + longText + `"...>>`: frame(tagBinary, 0, 0, 1, 0, strings.Repeat("a", 256)),
	} {
		got, err := Format(b)
		if err != nil || got != want {
			t.Errorf("%v: %s, %v; want %s", b, got, err, want)
		}
		d, err := NewDecoder(b)
		if err == nil {
			err = d.Skip()
		}
		if err != nil {
			t.Errorf("skip %s: %v", want, err)
		}
	}
}

var longText = strings.Repeat("a", 200)

func TestAppendName(t *testing.T) {
	for _, c := range []struct {
		what string
		term []byte
		want string
		err  error
	}{
		{"nil", frame(tagNil), "", nil},
		{"string", frame(tagString, 0, 3, "/a\xe9"), "/aé", nil},
		{"empty string", frame(tagString, 0, 0), "", nil},
		{"code points", frame(tagList, 0, 0, 0, 2, tagSmallInteger, '/', tagInteger, 0, 1, 0xf6, 0, tagNil), "/😀", nil},
		{"nested", frame(tagList, 0, 0, 0, 2, tagString, 0, 1, "/", tagList, 0, 0, 0, 1, tagSmallInteger, 'a', tagNil, tagNil), "/a", nil},
		{"string as tail", frame(tagList, 0, 0, 0, 1, tagSmallInteger, '/', tagString, 0, 1, "a"), "/a", nil},
		{"list of nothing", frame(tagList, 0, 0, 0, 0, tagNil), "", nil},
		{"nil in list", frame(tagList, 0, 0, 0, 1, tagNil, tagNil), "", nil},
		{"zero", frame(tagString, 0, 1, 0), "", ErrName},
		{"zero in list", frame(tagList, 0, 0, 0, 1, tagSmallInteger, 0, tagNil), "", ErrName},
		{"surrogate", frame(tagList, 0, 0, 0, 1, tagInteger, 0, 0, 0xd8, 0, tagNil), "", ErrName},
		{"above Unicode", frame(tagList, 0, 0, 0, 1, tagInteger, 0, 0x11, 0, 0, tagNil), "", ErrName},
		{"negative", frame(tagList, 0, 0, 0, 1, tagInteger, 255, 255, 255, 255, tagNil), "", ErrName},
		{"small number as a bignum", frame(tagList, 0, 0, 0, 1, tagSmallBig, 3, 0, 'a', 0, 0, tagNil), "a", nil},
		{"zero as a bignum", frame(tagList, 0, 0, 0, 1, tagSmallBig, 0, 0, tagNil), "", ErrName},
		{"bignum", frame(tagList, 0, 0, 0, 1, tagSmallBig, 8, 0, "aaaaaaaa", tagNil), "", ErrName},
		{"atom", frame(tagSmallAtom, 1, "a"), "", ErrName},
		{"binary", frame(tagBinary, 0, 0, 0, 1, "a"), "", ErrName},
		{"integer", frame(tagSmallInteger, 'a'), "", ErrName},
		{"improper", frame(tagList, 0, 0, 0, 1, tagSmallInteger, 'a', tagSmallInteger, 'b'), "", ErrName},
		{"atom in list", frame(tagList, 0, 0, 0, 1, tagSmallAtom, 1, "a", tagNil), "", ErrName},
		{"tuple", frame(tagSmallTuple, 1, tagString, 0, 1, "a"), "", ErrName},
		{"string cut short", frame(tagString, 0, 2, "a"), "", ErrMalformed},
		{"list cut short", frame(tagList, 0, 0, 0, 2, tagSmallInteger, 'a', tagInteger, 0), "", ErrMalformed},
		{"too deep", append(frame(bytes.Repeat([]byte{tagList, 0, 0, 0, 1}, MaxDepth+1)), bytes.Repeat([]byte{tagNil}, MaxDepth+2)...), "", ErrMalformed},
	} {
		d, err := NewDecoder(c.term)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.AppendName([]byte("before"))
		if !errors.Is(err, c.err) || err == nil && string(got) != "before"+c.want {
			t.Errorf("%s: %q, %v; want %q, %v", c.what, got, err, c.want, c.err)
		}
		if !errors.Is(err, ErrMalformed) && len(d.rest) > 0 {
			t.Errorf("%s: %v left", c.what, d.rest)
		}
	}
}

func TestNameRoundTrip(t *testing.T) {
	for _, name := range []string{
		"", "/", "/usr/lib/erlang", "/é", "/ÿ", "/Ā", "/日本", "/😀",
		strings.Repeat("a", 65535), strings.Repeat("a", 65536), strings.Repeat("é", 65535), strings.Repeat("é", 65536),
	} {
		b := AppendName([]byte{Version}, name)
		d, err := NewDecoder(b)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.AppendName(nil)
		if err != nil || string(got) != name || len(d.rest) > 0 {
			t.Errorf("%.20q (%d bytes): came back as %.20q (%d bytes), %v, %d bytes left", name, len(name), got, len(got), err, len(d.rest))
		}
	}
	if got, want := AppendName(nil, "\xff"), AppendName(nil, "\ufffd"); !bytes.Equal(got, want) {
		t.Errorf("invalid UTF-8: %v, want %v", got, want)
	}
}

func TestIntegerRoundTrip(t *testing.T) {
	for _, n := range []int64{0, 1, 255, 256, -1, -256, 1<<31 - 1, 1 << 31, -1 << 31, -1<<31 - 1, 1<<63 - 1, -1 << 63} {
		d := Decoder{AppendInteger(nil, n)}
		got, err := d.Next()
		if err != nil || len(d.rest) > 0 {
			t.Fatalf("%d: %v, %d bytes left", n, err, len(d.rest))
		}
		value := got.Int
		if got.Kind == BigInteger {
			value = 0
			for i := len(got.Bytes) - 1; i >= 0; i-- {
				value = value<<8 | int64(got.Bytes[i])
			}
			value *= got.Int
		}
		if value != n {
			t.Errorf("%d came back as %d", n, value)
		}
	}
}

// recordedFrames are the requests of real nodes of OTP 23, 25, 27 and 29.
func recordedFrames(t testing.TB) (frames [][]byte) {
	t.Helper()
	files, err := filepath.Glob("../testdata/*.[ws]*")
	if err != nil || len(files) == 0 {
		t.Fatalf("recordings: %q, %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if quoted, ok := strings.CutPrefix(strings.TrimSpace(line), "request "); ok {
				frame, err := strconv.Unquote(quoted)
				if err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				frames = append(frames, []byte(frame))
			}
		}
	}
	return frames
}

// A frame is a term or malformed, decoding it allocates nothing, and what was decoded
// encodes to a term that means the same. That real Erlang agrees is TestAgainstErlang's.
func FuzzETF(f *testing.F) {
	for _, frame := range recordedFrames(f) {
		f.Add(frame)
	}
	for _, b := range [][]byte{
		frame(tagSmallTuple, 2, tagSmallAtomUTF8, 3, "get", tagString, 0, 2, "/a"),
		frame(tagLargeTuple, 0, 0, 0, 2, tagAtom, 0, 3, "get", tagList, 0, 0, 0, 1, tagInteger, 0, 1, 0, 0, tagNil),
		frame(tagSmallBig, 9, 1, "123456789"),
		frame(tagBinary, 0, 0, 0, 1, "a"),
		frame(tagList, 0, 0, 0, 1, tagNil, tagAtomUTF8, 0, 2, "é"),
		frame(80, 0, 0, 0, 9),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := NewDecoder(b)
		if err != nil {
			return
		}
		text, formatErr := Format(b)
		skipped := d
		if err := skipped.Skip(); (err == nil) != (formatErr == nil) {
			t.Fatalf("skip: %v, format: %v", err, formatErr)
		}
		names := d
		name, nameErr := names.AppendName(make([]byte, 0, 2*len(b)))
		if len(name) > 2*len(b) {
			t.Fatalf("a name of %d bytes out of a frame of %d", len(name), len(b))
		}
		if errors.Is(nameErr, ErrMalformed) != (formatErr != nil) {
			t.Fatalf("name: %v, format: %v", nameErr, formatErr)
		}
		if formatErr != nil {
			return
		}
		if !utf8.Valid(name) || !utf8.ValidString(text) {
			t.Fatalf("not UTF-8: %q, %q", name, text)
		}
		again, err := reencode(&d, []byte{Version})
		if err != nil {
			t.Fatal(err)
		}
		if text2, err := Format(again); err != nil || text2 != text {
			t.Fatalf("%s came back as %s, %v", text, text2, err)
		}
		d, _ = NewDecoder(again)
		if same, err := reencode(&d, []byte{Version}); err != nil || !bytes.Equal(same, again) {
			t.Fatalf("% x encodes as % x, %v", again, same, err)
		}
		if nameErr == nil {
			d = Decoder{AppendName(nil, string(name))}
			if got, err := d.AppendName(nil); err != nil || !bytes.Equal(got, name) {
				t.Fatalf("name %q came back as %q, %v", name, got, err)
			}
		}
		if got := testing.AllocsPerRun(1, func() {
			d, _ := NewDecoder(b)
			n := d
			_ = d.Skip()
			_, _ = n.AppendName(name[:0])
		}); got > 0 {
			t.Fatalf("decoding allocated %v times", got)
		}
	})
}

func BenchmarkDecodeGet(b *testing.B) {
	request := AppendName(AppendAtom(AppendTuple([]byte{Version}, 2), "get"), "/usr/lib/erlang/lib/kernel-8.5.3/ebin/application_controller.beam")
	name := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		d, err := NewDecoder(request)
		if err != nil {
			b.Fatal(err)
		}
		if t, err := d.Next(); err != nil || t.Len != 2 {
			b.Fatal(err)
		}
		if t, err := d.Next(); err != nil || string(t.Bytes) != "get" {
			b.Fatal(err)
		}
		if name, err = d.AppendName(name[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeError(b *testing.B) {
	reply := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		reply = AppendTuple(append(reply[:0], Version), 2)
		reply = AppendAtom(reply, "get")
		reply = AppendTuple(reply, 2)
		reply = AppendAtom(reply, "error")
		reply = AppendAtom(reply, "enoent")
	}
}
