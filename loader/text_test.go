package loader

import (
	"strings"
	"testing"

	"eboot/bootproto/etf"
)

func TestText(t *testing.T) {
	long := make([]byte, 5000)
	for name, tc := range map[string]struct {
		script []byte
		want   string
	}{
		"empty": {script(), `{script,{"a","1"},
 [
 ]}.
`},
		"lines": {script(tuple{atomic("preLoaded"), list{atomic("init")}}, pathOf("$ROOT/lib/a/ebin", atomic("b")), completed), `{script,{"a","1"},
 [{preLoaded,[init]},
  {path,["$ROOT/lib/a/ebin",b]},
  {kernel_load_completed}
 ]}.
`},
		"long binaries": {script(apply(long, []byte("short"), long[:300]), apply(long)), `{script,{"a","1"},
 [{apply,{<<0,0,0,...>>,<<"short">>,<<0,0,0,...>>}}, % 5000 bytes, 300 bytes
  {apply,{<<0,0,0,...>>}} % 5000 bytes
 ]}.
`},
	} {
		for _, form := range [][]byte{tc.script, etf.Deflate(tc.script)} {
			if got, err := Text(form); err != nil || got != tc.want {
				t.Errorf("%s: %v\n%s", name, err, got)
			}
		}
	}
	named := append([]byte{131, 104, 3, 119, 6}, "script"...)
	named = append(append(etf.AppendBinary(named, 5000), long...), 106)
	if got, err := Text(named); err != nil || !strings.HasPrefix(got, "{script,<<0,0,0,...>>, % 5000 bytes\n [") {
		t.Errorf("a long name: %v\n%s", err, got)
	}
}
