"""Loops found in machine code: nested, moved out of line, searches told from work."""

from fmri_scale.kernels.machine import loops_of

NESTED = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4] ;
        /*0020*/                   IADD3 R4, R4, 0x4, RZ ;
.L_x_1:
        /*0030*/                   IMAD R5, R5, R6, RZ ;
        /*0040*/                   ISETP.GE.AND P0, PT, R5, R7, PT ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/              @!P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0070*/               @P2 BRA `(.L_x_0) ;
        /*0080*/                   STG.E [R4], R5 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   FADD R8, R8, R9 ;
        /*00b0*/                   BRA `(.L_x_2) ;
"""
LEFT_BY_CALL = """
.L_x_0:
        /*0000*/                   LDG.E R2, [R4] ;
        /*0010*/              @!P2 CALL.REL.NOINC `(.L_x_1) ;
        /*0020*/                   BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   STG.E [R4], R5 ;
.L_x_2:
        /*0040*/                   LDG.E R2, [R4] ;
        /*0050*/               @P2 BRA `(.L_x_2) ;
        /*0060*/                   EXIT ;
"""
AMD = """
\tv_mov_b32_e32 v1, 0
.LBB0_1:                                ; %loop
\tglobal_load_dword v2, v[4:5], off
\ts_waitcnt vmcnt(0)
\tv_add_f32_e32 v1, v1, v2
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""


def test_code_out_of_line_belongs_to_its_loop():
    total, (outer, inner) = loops_of(NESTED)
    assert total == 12
    assert (outer.instructions, outer.own, outer.depth, outer.works) == (9, 6, 0, True)
    assert (inner.instructions, inner.own, inner.depth, inner.works) == (3, 3, 1, False)
    assert outer.kinds == {"LDG": 1, "IADD3": 1, "BRA": 3, "FADD": 1}


def test_loop_may_be_left_by_a_call():
    _, loops = loops_of(LEFT_BY_CALL)
    assert [loop.instructions for loop in loops] == [3, 2]


def test_amd_assembly():
    total, (loop,) = loops_of(AMD, amd=True)
    assert (total, loop.instructions, loop.works) == (6, 4, True)
    assert loop.kinds["global_load_dword"] == 1
