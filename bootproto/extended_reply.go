package bootproto

import "eboot/bootproto/etf"

// appendOpened writes {eboot_open,{ok,Info}} up to the bytes of the tree. Info is a list of pairs. What
// the slave did not ask for is not in it.
func appendOpened(dst []byte, wanted Open, o Opened) []byte {
	items := 4
	if wanted.Tree && o.Tree != nil {
		items++
	}
	if wanted.Plan {
		items++
	}
	dst = etf.AppendTuple(beginFrame(dst), 2)
	dst = etf.AppendAtom(dst, atomOpen)
	dst = etf.AppendTuple(dst, 2)
	dst = etf.AppendAtom(dst, "ok")
	dst = etf.AppendList(dst, items)
	dst = appendText(appendKey(dst, "bundle"), o.Bundle)
	control := "off"
	if o.Control {
		control = "on"
	}
	dst = etf.AppendAtom(appendKey(dst, "control"), control)
	dst = appendText(appendKey(dst, "cwd"), o.Cwd)
	dst = appendTexts(appendKey(dst, "roots"), o.Roots)
	if wanted.Tree && o.Tree != nil {
		dst = etf.AppendBinary(appendKey(dst, "tree"), int64(len(o.Tree)))
	}
	return dst
}

// appendPlan writes what follows the tree.
func appendPlan(dst []byte, wanted Open, o Opened) []byte {
	if wanted.Plan {
		dst = appendTexts(appendKey(dst, "plan"), o.Plan)
	}
	return etf.AppendNil(dst)
}

// appendOpenError writes {eboot_open,{error,Reason}}.
func appendOpenError(dst []byte, reason string) []byte {
	dst = etf.AppendTuple(beginFrame(dst), 2)
	dst = etf.AppendAtom(dst, atomOpen)
	return endFrame(appendReason(dst, reason), 0)
}

// appendFile writes {eboot_file,Path,Content} without the size bytes of the content,
// which end it; a packed one is {packed,Content}.
func appendFile(dst, path []byte, packed bool, size int64) []byte {
	begin := len(dst)
	dst = beginFile(dst, path)
	if packed {
		dst = appendKey(dst, "packed")
	}
	dst = etf.AppendBinary(dst, size)
	endFrame(dst[begin:], size)
	return dst
}

// appendFileError writes {eboot_file,Path,{error,Reason}}.
func appendFileError(dst, path []byte, reason string) []byte {
	begin := len(dst)
	dst = appendReason(beginFile(dst, path), reason)
	endFrame(dst[begin:], 0)
	return dst
}

func beginFile(dst, path []byte) []byte {
	dst = etf.AppendTuple(beginFrame(dst), 3)
	dst = etf.AppendAtom(dst, atomFile)
	return append(etf.AppendBinary(dst, int64(len(path))), path...)
}

// appendDone writes {eboot_done,Count}.
func appendDone(dst []byte, count int) []byte {
	begin := len(dst)
	dst = etf.AppendTuple(beginFrame(dst), 2)
	dst = etf.AppendAtom(dst, atomDone)
	dst = etf.AppendInteger(dst, int64(count))
	endFrame(dst[begin:], 0)
	return dst
}

// appendRestart writes {eboot_restart,Boot}.
func appendRestart(dst []byte, boot uint64) []byte {
	dst = etf.AppendTuple(beginFrame(dst), 2)
	dst = etf.AppendAtom(dst, atomRestart)
	return endFrame(etf.AppendInteger(dst, int64(boot)), 0)
}

// appendKey begins a pair; its value is to follow.
func appendKey(dst []byte, key string) []byte {
	return etf.AppendAtom(etf.AppendTuple(dst, 2), key)
}

func appendReason(dst []byte, reason string) []byte {
	return etf.AppendAtom(appendKey(dst, "error"), reason)
}

func appendText(dst []byte, text string) []byte {
	return append(etf.AppendBinary(dst, int64(len(text))), text...)
}

func appendTexts(dst []byte, texts []string) []byte {
	if len(texts) > 0 {
		dst = etf.AppendList(dst, len(texts))
		for _, text := range texts {
			dst = appendText(dst, text)
		}
	}
	return etf.AppendNil(dst)
}
