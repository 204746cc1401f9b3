package etf

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAgainstErlang sends random terms and random damage through the decoder
// and lets Erlang's binary_to_term judge what it accepted: the same term, and
// the same file name as prim_file would use.
func TestAgainstErlang(t *testing.T) {
	escript, err := exec.LookPath("escript")
	if err != nil {
		if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
			t.Fatal(err)
		}
		t.Skip("no escript on PATH")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var frames [][]byte
	for len(frames) < 6000 {
		b := randomFrame(rnd)
		if rnd.IntN(3) == 0 {
			for range 1 + rnd.IntN(3) {
				b[1+rnd.IntN(len(b)-1)] = byte(rnd.Uint32())
			}
		}
		frames = append(frames, b)
	}

	var input []byte
	var want []string
	var accepted [][]byte
	for _, b := range frames {
		d, err := NewDecoder(b)
		if err != nil || d.Skip() != nil {
			continue
		}
		d, _ = NewDecoder(b)
		again, err := reencode(&d, []byte{Version})
		if err != nil {
			t.Fatal(err)
		}
		verdict := "no name"
		d, _ = NewDecoder(b)
		if tuple, _ := d.Next(); tuple.Kind == Tuple && tuple.Len == 2 {
			if err := d.Skip(); err != nil {
				t.Fatal(err)
			}
			if name, err := d.AppendName(nil); err == nil {
				verdict = "name " + hex.EncodeToString(append(name, 0))
			}
		}
		input = binary.BigEndian.AppendUint32(input, uint32(len(b)))
		input = append(input, b...)
		input = binary.BigEndian.AppendUint32(input, uint32(len(again)))
		input = append(input, again...)
		want = append(want, verdict)
		accepted = append(accepted, b)
	}
	if len(accepted) < len(frames)/2 {
		t.Fatalf("only %d of %d frames were accepted", len(accepted), len(frames))
	}

	file := filepath.Join(t.TempDir(), "frames")
	if err := os.WriteFile(file, input, 0o600); err != nil {
		t.Fatal(err)
	}
	judge := exec.Command(escript, "testdata/judge.escript", file)
	var stderr bytes.Buffer
	judge.Stderr = &stderr
	output, err := judge.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, output, stderr.Bytes())
	}
	got := strings.Split(strings.TrimSuffix(string(output), "\n"), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d verdicts of %d", len(got), len(want))
	}
	names := 0
	for i, b := range accepted {
		if strings.HasPrefix(want[i], "name ") {
			names++
		}
		if got[i] != want[i] {
			text, _ := Format(b)
			t.Errorf("%s % x\ngo:     %s\nerlang: %s", text, b, want[i], got[i])
		}
	}
	t.Logf("%d terms, %d of them names", len(accepted), names)
}

// randomFrame makes a term of the kind that is read, most often a command and a
// name, in any of the forms in which it may be written.
func randomFrame(rnd *rand.Rand) []byte {
	b := []byte{Version}
	if rnd.IntN(2) == 0 {
		b = append(b, tagSmallTuple, 2)
	} else {
		b = append(b, tagLargeTuple, 0, 0, 0, 2)
	}
	b = appendRandomAtom(b, rnd)
	if rnd.IntN(3) > 0 {
		b = appendRandomName(b, rnd, 3)
	} else {
		b = appendRandomTerm(b, rnd, 4)
	}
	for range rnd.IntN(8) * rnd.IntN(2) { // after the term: ignored
		b = append(b, byte(rnd.Uint32()))
	}
	return b
}

func appendRandomAtom(b []byte, rnd *rand.Rand) []byte {
	commands := []string{"get", "list_dir", "read_file_info", "read_link_info", "get_cwd"}
	text := commands[rnd.IntN(len(commands))]
	switch rnd.IntN(4) {
	case 0:
		b = append(b, tagAtom, 0, byte(len(text)))
	case 1:
		b = append(b, tagSmallAtom, byte(len(text)))
	case 2:
		b = append(b, tagAtomUTF8, 0, byte(len(text)))
	case 3:
		return AppendAtom(b, text)
	}
	return append(b, text...)
}

func appendRandomName(b []byte, rnd *rand.Rand, depth int) []byte {
	switch rnd.IntN(4) {
	case 0:
		n := rnd.IntN(20)
		b = append(b, tagString, 0, byte(n))
		for range n {
			b = append(b, byte(1+rnd.IntN(255)))
		}
		return b
	case 1:
		points := []rune{'a', '/', '.', 'é', 'ÿ', 'Ā', '日', '😀', 0x10ffff, 0xfffe}
		name := ""
		for range rnd.IntN(10) {
			name += string(points[rnd.IntN(len(points))])
		}
		return AppendName(b, name)
	case 2:
		return AppendNil(b)
	default:
		n := rnd.IntN(4)
		b = AppendList(b, n)
		for range n {
			if depth > 0 && rnd.IntN(3) == 0 {
				b = appendRandomName(b, rnd, depth-1)
			} else {
				b = AppendInteger(b, int64(rnd.IntN(0x500)-1))
			}
		}
		if depth > 0 && rnd.IntN(3) == 0 {
			return appendRandomName(b, rnd, depth-1)
		}
		return AppendNil(b)
	}
}

func appendRandomTerm(b []byte, rnd *rand.Rand, depth int) []byte {
	kind := rnd.IntN(8)
	if depth == 0 {
		kind = rnd.IntN(5)
	}
	switch kind {
	case 0:
		return appendRandomAtom(b, rnd)
	case 1:
		return AppendInteger(b, int64(rnd.Uint64())>>rnd.IntN(64))
	case 2:
		return append(AppendBinary(b, 3), "abc"...)
	case 3:
		return AppendNil(b)
	case 4:
		n := rnd.IntN(12)
		b = append(b, tagSmallBig, byte(n), byte(rnd.IntN(2)))
		for range n {
			b = append(b, byte(rnd.IntN(4)))
		}
		return b
	case 5:
		return appendRandomName(b, rnd, depth)
	case 6:
		n := rnd.IntN(4)
		b = AppendTuple(b, n)
		for range n {
			b = appendRandomTerm(b, rnd, depth-1)
		}
		return b
	default:
		n := rnd.IntN(4)
		b = AppendList(b, n)
		for range n {
			b = appendRandomTerm(b, rnd, depth-1)
		}
		return appendRandomTerm(b, rnd, depth-1)
	}
}
